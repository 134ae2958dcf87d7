-- How a job ends: its last task, its finalise task, its deadline.
--
-- requires: prelude, job_record, task_record, leases, lane_use, ready_index, tallies
--
--   finished:<job>   list: tasks in the order they were done
--   failures:<job>   list: tasks with failed pictures
--   ended            sorted set: job -> when it ended (ms)
--   cancelled        set: jobs of which the store does not say yet that they were cancelled; a
--                    gateway notes it there (farm/gateway/events.py)
--   keeping          sorted set: job/tenant -> when its objects are to go (ms); of ended jobs with
--                    the option `keep`
--   retrying         set: jobs with failures that are still to be queued again
--   deadlines        sorted set: job -> deadline (ms)
--   opened           sorted set: open job -> when a piece last came in, new or again (ms)
--   text:<job>       hash: number -> chunk as JSON, of small jobs only
--   pieces:<job>     hash: piece -> sha256 of its content

local MAX_DROPPED = 256 -- lanes, in one call; of a job with very many they take 0.1 ms each

-- Failures that are not queued again by now stay failed.
local function end_retry(job)
  redis.call('HDEL', P .. 'job:' .. job, 'rt', 'rr')
  redis.call('SREM', P .. 'retrying', job)
end

-- A job and its tenant, for what outlives the job's record.
local function owned_job(job, tenant)
  return job .. '/' .. tenant
end

-- From now on the job is kept for as long as it was asked for.
local function start_keeping(job)
  local h = redis.call('HMGET', P .. 'job:' .. job, 't', 'o')
  local keep = string.match(cjson.decode(h[2]).keep or '', '^(%d+)s$')
  if keep then redis.call('ZADD', P .. 'keeping', now + keep * 1000, owned_job(job, h[1])) end
end

local function end_job(job, state, reason)
  redis.call('HSET', P .. 'job:' .. job, 's', state, 'e', now)
  if reason then redis.call('HSET', P .. 'job:' .. job, 'r', reason) end
  redis.call('ZADD', P .. 'ended', now, job)
  start_keeping(job)
  redis.call('ZREM', P .. 'deadlines', job)
  end_retry(job)
  leave_lanes(job, redis.call('HGET', P .. 'job:' .. job, 't'))
  redis.call('DEL', P .. 'pieces:' .. job)
  -- Only a retry needs the chunks' texts.
  if state ~= 'f' and redis.call('EXISTS', P .. 'failures:' .. job) == 0 then
    redis.call('UNLINK', P .. 'text:' .. job)
  end
  event(job, ({d = 'done', f = 'failed', x = 'cancelled'})[state])
end

-- A job whose last task has ended is done, or failed if too many pictures were. Returns the state,
-- and the reason of the latter.
local function final_state(job)
  local h = redis.call('HMGET', P .. 'job:' .. job, 'if', 'i', 'o')
  local allowed = cjson.decode(h[3]).max_failed or 0
  if number(h[1]) <= allowed then return 'd' end
  return 'f', h[1] .. ' of ' .. h[2] .. ' pictures failed; at most ' .. allowed .. ' were allowed'
end

local function finalise_job(job)
  end_job(job, final_state(job))
end

-- CLOSED, all tasks ended: queues the task that finalises the job. It goes to `session`, which
-- ended the last task, if that session is there and takes work.
local function finalise_when_ended(job, session)
  local h = redis.call('HMGET', P .. 'job:' .. job,
    's', 'n', 'nd', 'nf', 'nc', 'nx', 'g', 'fz', 'rt')
  if h[1] ~= 'c' or h[9] then return end
  local ended = number(h[3]) + number(h[4]) + number(h[5]) + number(h[6])
  if number(h[2]) ~= ended or h[8] == tostring(number(h[7])) then return end
  local name = task_name(number(h[7]), FINALISE)
  local task = fresh_task(0, 0, 0, 0)
  redis.call('HSET', P .. 'job:' .. job, 'fz', number(h[7]))
  local takes = session and redis.call('EXISTS', P .. 'session:' .. session) == 1
    and not redis.call('HGET', P .. 'session:' .. session, 'command')
  if takes then
    hold(session, job, name, pack_task(task))
  else
    write_task(job, name, task)
    redis.call('RPUSH', P .. 'finalise', lease_key(job, name))
  end
end

-- OPEN, QUEUED or RUNNING -> CANCELLED. Returns the number of its lanes.
local function cancel_job(job, head, reason)
  local lanes = drop_ready(job, head)
  local h = redis.call('HMGET', P .. 'job:' .. job, 'nq', 'nl', 'nw')
  local tasks = number(h[1]) + number(h[2]) + number(h[3])
  redis.call('HSET', P .. 'job:' .. job, 'nq', 0, 'nl', 0, 'nw', 0, 'rd', 0, 'rf', 0, 'lp', 0)
  count(job, {nc = tasks})
  redis.call('ZREM', P .. 'opened', job)
  redis.call('SADD', P .. 'cancelled', job)
  end_job(job, 'x', reason)
  return lanes
end

-- QUEUED and WAITING -> EXPIRED for all of a job's tasks; leased ones go on. The records of the
-- tasks stay unchanged: the job's state overrides theirs. Returns the number of its lanes.
local function expire_job(job, head)
  if head.late or not alive(head) then return 0 end
  local lanes = drop_ready(job, head)
  head.late = true
  local h = redis.call('HMGET', P .. 'job:' .. job, 'nq', 'nw', 'i', 'id', 'if', 'lp')
  local tasks = number(h[1]) + number(h[2])
  local pictures = number(h[3]) - number(h[4]) - number(h[5]) - number(h[6])
  redis.call('HSET', P .. 'job:' .. job, 'dx', 1)
  end_retry(job)
  tally('failed:expired', pictures)
  count(job, {nq = -number(h[1]), nw = -number(h[2]), nx = tasks, ['if'] = pictures,
    ix = pictures})
  redis.call('ZREM', P .. 'deadlines', job)
  event(job, 'task')
  finalise_when_ended(job, nil)
  return lanes
end
