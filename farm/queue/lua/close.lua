#!lua
-- OPEN -> QUEUED, or RUNNING if work has started
--
-- requires: prelude, submission
--
-- ARGV  job, number of its pieces
--
-- Returns 1, also if the job was closed before with as many pieces.
if not aof_rewritten() then return refuse('REWRITE', 'the server was restarted') end
local job, pieces = ARGV[1], tonumber(ARGV[2])
local h = redis.call('HMGET', P .. 'job:' .. job, 's', 'cl', 'pn', 'pm')
if not h[1] then return refuse('NOTFOUND', 'there is no job ' .. job) end
if h[1] == 'x' then return refuse('CANCELLED', 'job ' .. job .. ' was cancelled') end
if h[1] ~= 'o' then
  if number(h[2]) == pieces then return 1 end
  return refuse('CONFLICT', 'job ' .. job .. ' was closed with ' .. h[2] .. ' pieces')
end
if number(h[3]) > 0 and number(h[4]) >= pieces then
  return refuse('CONFLICT', 'job ' .. job .. ' has piece ' .. number(h[4])
    .. ', so more than ' .. pieces .. ' pieces')
end
if number(h[3]) < pieces then
  local first = 0
  while redis.call('HEXISTS', P .. 'pieces:' .. job, first) == 1 do first = first + 1 end
  return refuse('CONFLICT', 'piece ' .. first .. ' of job ' .. job .. ' is missing',
    'send it, then close again')
end
redis.call('ZREM', P .. 'opened', job)
close_job(job, pieces)
return 1
