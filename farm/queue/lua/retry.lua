#!lua
-- DONE or FAILED -> QUEUED: the tasks with failed pictures run again, as a new generation.
--
-- requires: prelude, job_record, task_record, lane_use, job_lifecycle, submission, retries
--
-- ARGV  job, tenant, reason or empty: retry only what failed for it, see parts/retries.lua
--
-- Returns the generation; for a job that is being retried already, the present one.
local SEARCHED = 1000 -- failures; among more of them a retry for a reason may find nothing

if not aof_rewritten() then return refuse('REWRITE', 'the server was restarted') end
local job = ARGV[1]
local head, refused = own_job(job, ARGV[2])
if refused then return refused end
if head.state == 'x' then
  return refuse('CONFLICT', 'job ' .. job .. ' was cancelled', 'submit its renders again')
end
if head.state ~= 'd' and head.state ~= 'f' then
  if head.generation > 0 then return head.generation end
  return refuse('CONFLICT', 'job ' .. job .. ' has not ended')
end
local reason = ARGV[3]
local failures = redis.call('LLEN', P .. 'failures:' .. job)
local final = read_task(job, task_name(head.generation, FINALISE))
local all_but_finalised = failures == 0 and final and final.state == 'f'
if overdue(head) and not all_but_finalised then
  return refuse('CONFLICT', 'the deadline of job ' .. job .. ' has passed')
end
if failures == 0 and head.state == 'd' then
  return refuse('CONFLICT', 'job ' .. job .. ' has no failed pictures')
end
if reason ~= '' and failures <= SEARCHED then
  local found = false
  local names = redis.call('LRANGE', P .. 'failures:' .. job, 0, -1)
  for _, name in ipairs(names) do found = found or failed_for(read_task(job, name), reason) end
  if not found then
    return refuse('CONFLICT', 'no picture of job ' .. job .. ' failed for the reason ' .. reason,
      "row, crash, infra, or a part of a failure's reason")
  end
end
head.generation = head.generation + 1
head.state = 'c'
redis.call('HSET', P .. 'job:' .. job, 's', 'c', 'g', head.generation, 'rt', failures)
redis.call('HDEL', P .. 'job:' .. job, 'e', 'r')
if reason ~= '' then redis.call('HSET', P .. 'job:' .. job, 'rr', reason) end
redis.call('ZREM', P .. 'ended', job)
redis.call('ZREM', P .. 'keeping', owned_job(job, head.tenant))
if head.deadline then redis.call('ZADD', P .. 'deadlines', head.deadline, job) end
redis.call('SADD', P .. 'retrying', job)
reuse_lanes(job, head.tenant)
event(job, 'queued')
retry_some(job, head)
return head.generation
