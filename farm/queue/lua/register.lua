#!lua flags=allow-oom
-- A session starts. Called again with the same session, it updates what the worker says of itself.
--
-- requires: prelude, interning
--
-- ARGV  session, worker, info as JSON, lease (ms), then the checkpoints' names
--
-- Returns 1.
local session = ARGV[1]
local numbers = {}
for at = 5, #ARGV do numbers[#numbers + 1] = intern('checkpoint', ARGV[at]) end
redis.call('HSET', P .. 'session:' .. session, 'worker', ARGV[2], 'info', ARGV[3],
  'checkpoints', table.concat(numbers, ','), 'seen', now, 'lease', ARGV[4])
redis.call('ZADD', P .. 'sessions', 'GT', now + ARGV[4], session)
return 1
