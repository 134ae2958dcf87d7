#!lua flags=allow-oom
-- Sets what a session is told by its heartbeats; a session with a command gets no more work, nor
-- does it keep others from tasks that run alone by draining for one.
--
-- requires: prelude
--
-- ARGV  session, command or empty to take it back; and, if it is to replace only one command, that
--       one, which is empty where there must be none
--
-- Returns 1, or 0 if the session does not exist or has another command than the one to be replaced.
if redis.call('EXISTS', P .. 'session:' .. ARGV[1]) == 0 then return 0 end
local before = redis.call('HGET', P .. 'session:' .. ARGV[1], 'command') or ''
if ARGV[3] and before ~= ARGV[3] then return before == ARGV[2] and 1 or 0 end
if ARGV[2] == '' then
  redis.call('HDEL', P .. 'session:' .. ARGV[1], 'command')
else
  redis.call('HSET', P .. 'session:' .. ARGV[1], 'command', ARGV[2])
  redis.call('SREM', P .. 'draining', ARGV[1])
end
return 1
