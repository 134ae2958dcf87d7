#!lua flags=allow-oom
-- The server that runs now has rewritten its append-only file: submissions may come in.
--
-- requires: prelude
--
-- ARGV  the server's run_id
--
-- Returns 1.
redis.call('HSET', P .. 'server', 'settled', ARGV[1])
return 1
