-- How an ended job leaves the queue.
--
-- requires: constants, prelude, paged_set, lane_use, job_lifecycle
--
--   removals   sorted set: job/tenant -> when no worker stores anything of it any more (ms); its
--              objects are to be deleted from the store

-- The queue no longer knows the job. Returns the number of its lanes.
local function forget_job(job)
  local h = redis.call('HMGET', P .. 'job:' .. job, 't', 'ik', 'q')
  redis.call('ZREM', P .. 'ended', job)
  redis.call('SREM', P .. 'cancelled', job)
  if h[1] then
    if h[2] then redis.call('HDEL', P .. 'keys:' .. h[1], h[2]) end
    paged_remove(P .. 'of:' .. h[1], h[3], job)
  end
  local lanes = forget_lanes(job)
  redis.call('UNLINK', P .. 'job:' .. job, P .. 'task:' .. job, P .. 'text:' .. job,
    P .. 'pieces:' .. job, P .. 'finished:' .. job, P .. 'failures:' .. job)
  return lanes
end

-- When no worker stores anything of an ended job any more. Those of a cancelled one may do so for a
-- while.
local function settled_at(job)
  local h = redis.call('HMGET', P .. 'job:' .. job, 's', 'e')
  return h[1] == 'x' and math.max(now, number(h[2]) + SETTLED) or now
end

-- The same as forget_job, and its objects go as well. A second call changes nothing but the lanes it
-- returns.
local function remove_job(job, tenant)
  redis.call('ZREM', P .. 'keeping', owned_job(job, tenant))
  redis.call('ZADD', P .. 'removals', 'NX', settled_at(job), owned_job(job, tenant))
  return forget_job(job)
end
