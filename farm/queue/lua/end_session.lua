#!lua flags=allow-oom
-- A session ends by crash, drain or lost. Everything it holds goes back.
--
-- requires: session_lifecycle
--
-- ARGV  session, crash | drain | lost
--
-- Returns how many tasks it held; 0 if it had ended before.
return end_session(ARGV[1], ARGV[2])
