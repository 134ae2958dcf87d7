#!lua flags=allow-oom
-- with: paged ready settle
-- A worker's life ends: crash, drain or lost. Everything it holds goes back.
--
-- ARGV  session, why
--
-- Returns how many tasks it held; 0 if it ended before.
return end_session(ARGV[1], ARGV[2])
