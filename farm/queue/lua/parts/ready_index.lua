-- The index of ready work.
--
-- requires: prelude, job_record, task_record, held_record, paged_set, lane_use
--
--   ready:<job>:<lane>             list: a job's tasks in the order they run; the first one may be
--                                  in the job's own hash instead
--   jobs:<lane>:<class>:<tenant>   paged set: job -> sequence; jobs with ready tasks
--   tenants:<lane>:<class>         sorted set: tenant -> a virtual time at or below the one in
--                                  `fair`; leases update the front (docs/fairness.md)
--   lanes:<checkpoint>:<class>     set: lanes with ready tasks
--   fair:<checkpoint>:<class>      hash: tenant -> virtual time in row-steps / weight;
--                                  "now" -> the latest virtual start of a grant so far;
--                                  "owed" -> row-steps that the class is owed (lease.lua)
--   work:tasks, work:pictures      hash: "lane:class" -> how many are ready, for the planner
--   alone:<job>:<checkpoint>       list: a job's ready tasks that run alone
--   suspects:<checkpoint>          sorted set: job with such tasks -> class and sequence
--   yielded                        hash: checkpoint -> row-steps that a task which ran alone still
--                                  owes to others (lease.lua)
--   finalise                       list: lease keys of jobs to finalise that no session holds

local MAX_ALONE = 32 -- of a job's tasks that run alone, looked at

local lane_checkpoints = {}

local function checkpoint_of(lane)
  local found = lane_checkpoints[lane]
  if not found then
    found = redis.call('HGET', P .. 'lane:checkpoints', lane)
    lane_checkpoints[lane] = found
  end
  return found
end

local function fair_key(lane, class)
  return P .. 'fair:' .. checkpoint_of(lane) .. ':' .. class
end

local function jobs_key(lane, class, tenant)
  return P .. 'jobs:' .. lane .. ':' .. class .. ':' .. tenant
end

local function ready_key(job, lane)
  return P .. 'ready:' .. job .. ':' .. lane
end

local function ready_count(job, lane)
  return redis.call('HEXISTS', P .. 'job:' .. job, 'h' .. lane)
    + redis.call('LLEN', ready_key(job, lane))
end

local function ready_tasks(job, lane)
  local names = redis.call('LRANGE', ready_key(job, lane), 0, -1)
  local first = redis.call('HGET', P .. 'job:' .. job, 'h' .. lane)
  if first then table.insert(names, 1, first) end
  return names
end

local function ready_append(job, lane, names)
  local first = 1
  if ready_count(job, lane) == 0 then
    redis.call('HSET', P .. 'job:' .. job, 'h' .. lane, names[1])
    first = 2
  end
  if first <= #names then redis.call('RPUSH', ready_key(job, lane), unpack(names, first)) end
end

local function ready_prepend(job, lane, name)
  local first = redis.call('HGET', P .. 'job:' .. job, 'h' .. lane)
  if first then redis.call('LPUSH', ready_key(job, lane), first) end
  redis.call('HSET', P .. 'job:' .. job, 'h' .. lane, name)
end

-- A job has ready tasks in a lane.
local function activate(job, head, lane)
  local place = lane .. ':' .. head.class
  paged_add(jobs_key(lane, head.class, head.tenant), head.sequence, job)
  local tenants = P .. 'tenants:' .. place
  if redis.call('ZSCORE', tenants, head.tenant) then return end
  -- A tenant that was idle starts level with the others: idle tenants earn no credit. A lane that
  -- has not been served for long is behind the class's clock; a newcomer joins it where it stands.
  local fair = fair_key(lane, head.class)
  local times = redis.call('HMGET', fair, head.tenant, 'now')
  local floor = number(times[2])
  local first = redis.call('ZRANGE', tenants, 0, 0, 'WITHSCORES')
  if first[2] then floor = math.min(floor, tonumber(first[2])) end
  local start = math.max(number(times[1]), floor)
  redis.call('HSET', fair, head.tenant, start)
  redis.call('ZADD', tenants, start, head.tenant)
  redis.call('SADD', P .. 'lanes:' .. checkpoint_of(lane) .. ':' .. head.class, lane)
end

-- A tenant no longer has ready tasks in a lane.
local function retire(lane, class, tenant)
  local tenants = P .. 'tenants:' .. lane .. ':' .. class
  redis.call('ZREM', tenants, tenant)
  if redis.call('EXISTS', tenants) == 1 then return end
  redis.call('SREM', P .. 'lanes:' .. checkpoint_of(lane) .. ':' .. class, lane)
end

-- A job no longer has ready tasks in a lane.
local function deactivate(job, head, lane)
  local jobs = jobs_key(lane, head.class, head.tenant)
  paged_remove(jobs, head.sequence, job)
  if redis.call('EXISTS', jobs) == 0 then retire(lane, head.class, head.tenant) end
end

local function count_backlog(place, tasks, pictures)
  if redis.call('HINCRBY', P .. 'work:tasks', place, tasks) == 0 then
    redis.call('HDEL', P .. 'work:tasks', place)
  end
  if redis.call('HINCRBY', P .. 'work:pictures', place, pictures) == 0 then
    redis.call('HDEL', P .. 'work:pictures', place)
  end
end

local function count_ready(job, head, lane, tasks, pictures)
  redis.call('HINCRBY', P .. 'job:' .. job, 'r' .. lane, pictures)
  if not head.paused then count_backlog(lane .. ':' .. head.class, tasks, pictures) end
end

local function suspects_key(checkpoint)
  return P .. 'suspects:' .. checkpoint
end

local function alone_key(job, checkpoint)
  return P .. 'alone:' .. job .. ':' .. checkpoint
end

local function show_suspects(job, head, checkpoint)
  redis.call('ZADD', suspects_key(checkpoint), head.class * 1e12 + head.sequence, job)
end

-- Takes one of a job's tasks that run alone.
local function take_suspect(job, checkpoint, name)
  local key = alone_key(job, checkpoint)
  redis.call('LREM', key, 1, name)
  if redis.call('EXISTS', key) == 0 then redis.call('ZREM', suspects_key(checkpoint), job) end
end

-- The first of a job's ready tasks that run alone: their names, and name -> record.
local function read_suspects(job, checkpoint)
  local names = redis.call('LRANGE', alone_key(job, checkpoint), 0, MAX_ALONE - 1)
  return names, read_records(job, names)
end

-- Calls `visit` with each checkpoint that a job has tasks for.
local function each_checkpoint(job, visit)
  local seen = {}
  each_lane(job, function(lane)
    local checkpoint = checkpoint_of(lane)
    if not seen[checkpoint] then visit(checkpoint) end
    seen[checkpoint] = true
  end)
end

-- A task that was started before goes to the front, ahead of those that were not.
local function make_ready(job, head, name, task)
  if task.lane == 0 then
    redis.call('RPUSH', P .. 'finalise', lease_key(job, name))
  elseif task.alone ~= SHARED then
    local checkpoint = checkpoint_of(task.lane)
    redis.call('RPUSH', alone_key(job, checkpoint), name)
    if not head.paused then show_suspects(job, head, checkpoint) end
  else
    ready_prepend(job, task.lane, name)
    count_ready(job, head, task.lane, 1, task.pictures)
    if not head.paused then activate(job, head, task.lane) end
  end
end

-- An earlier farm listed tasks that run alone by their lease keys: such a one is listed as it is now.
local function show_listed_task(key)
  if not string.find(key, '/', 1, true) then return end
  local job, name = split_key(key)
  local head, task = read_job(job), read_task(job, name)
  if head and alive(head) and task and task.state == 'q' and task.alone ~= SHARED then
    make_ready(job, head, name, task)
  end
end

-- Calls `visit` with each lane in which a job has ready tasks, their number and their pictures.
local function each_ready_lane(job, visit)
  each_lane(job, function(lane)
    local tasks = ready_count(job, lane)
    if tasks > 0 then
      visit(lane, tasks, number(redis.call('HGET', P .. 'job:' .. job, 'r' .. lane)))
    end
  end)
end

-- Removes all ready tasks of a job from the index at once, however many there are. Returns in how
-- many lanes the job has tasks: the time that it takes goes with them.
local function drop_ready(job, head)
  each_ready_lane(job, function(lane, tasks, pictures)
    if not head.paused then
      count_backlog(lane .. ':' .. head.class, -tasks, -pictures)
      deactivate(job, head, lane)
    end
    redis.call('UNLINK', ready_key(job, lane))
  end)
  each_checkpoint(job, function(checkpoint)
    redis.call('ZREM', suspects_key(checkpoint), job)
    redis.call('UNLINK', alone_key(job, checkpoint))
  end)
  local lanes = 0
  each_lane(job, function(lane)
    lanes = lanes + 1
    redis.call('HDEL', P .. 'job:' .. job, 'h' .. lane, 'r' .. lane)
  end)
  return lanes
end

-- A paused job keeps its tasks, but no lease finds them.
local function hide_ready(job, head)
  each_ready_lane(job, function(lane, tasks, pictures)
    count_backlog(lane .. ':' .. head.class, -tasks, -pictures)
    deactivate(job, head, lane)
  end)
  each_checkpoint(job, function(checkpoint)
    redis.call('ZREM', suspects_key(checkpoint), job)
  end)
end

local function show_ready(job, head)
  each_ready_lane(job, function(lane, tasks, pictures)
    count_backlog(lane .. ':' .. head.class, tasks, pictures)
    activate(job, head, lane)
  end)
  each_checkpoint(job, function(checkpoint)
    if redis.call('EXISTS', alone_key(job, checkpoint)) == 1 then
      show_suspects(job, head, checkpoint)
    end
  end)
end
