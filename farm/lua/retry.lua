#!lua
-- with: paged ready settle
-- DONE or FAILED -> QUEUED: the tasks with failed pictures run again, as a new generation.
--
-- ARGV  job, tenant
--
-- Returns the generation; that of a job which is being retried already is the present one.
local job = ARGV[1]
local head, refused = own_job(job, ARGV[2])
if refused then return refused end
if head.state == 'x' then return refuse('CONFLICT', 'job ' .. job .. ' was cancelled') end
if head.state ~= 'd' and head.state ~= 'f' then
  if head.generation > 0 then return head.generation end
  return refuse('CONFLICT', 'job ' .. job .. ' has not ended')
end
if head.late then return refuse('CONFLICT', 'the deadline of job ' .. job .. ' has passed') end
if redis.call('EXISTS', P .. 'failures:' .. job) == 0 then
  if head.state == 'd' then return refuse('CONFLICT', 'job ' .. job .. ' has no failed pictures') end
end
head.generation = head.generation + 1
head.state = 'c'
redis.call('HSET', P .. 'job:' .. job, 's', 'c', 'g', head.generation, 'rt', 1)
redis.call('HDEL', P .. 'job:' .. job, 'e', 'r')
redis.call('ZREM', P .. 'ended', job)
if head.deadline then redis.call('ZADD', P .. 'deadlines', head.deadline, job) end
redis.call('SADD', P .. 'retrying', job)
event(job, 'queued')
retry_some(job, head)
return head.generation
