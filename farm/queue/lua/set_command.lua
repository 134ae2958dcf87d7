#!lua flags=allow-oom
-- Sets what a session is told by its heartbeats; a session with a command gets no more work.
--
-- requires: prelude
--
-- ARGV  session, command or empty to take it back
--
-- Returns 1, or 0 if the session does not exist.
if redis.call('EXISTS', P .. 'session:' .. ARGV[1]) == 0 then return 0 end
if ARGV[2] == '' then
  redis.call('HDEL', P .. 'session:' .. ARGV[1], 'command')
else
  redis.call('HSET', P .. 'session:' .. ARGV[1], 'command', ARGV[2])
end
return 1
