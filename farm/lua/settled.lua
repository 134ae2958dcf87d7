#!lua flags=allow-oom
-- The append-only file was rewritten by the server that runs now: work may come in.
--
-- ARGV  the server's run_id
redis.call('HSET', P .. 'server', 'settled', ARGV[1])
return 1
