#!lua flags=allow-oom
-- QUEUED -> LEASED: grants tasks to a session, to its inbox and to the caller.
--
-- requires: constants, prelude, job_record, task_record, held_record, ready_index, fair_queue,
-- requires: grant_batch, job_lifecycle
--
-- ARGV  session, request (the same when a call is sent again), room (pictures), limit (tasks),
--       lease (ms), lowest class, "any" or "only", then the lanes
--
-- Returns as JSON a list of what parts/lease_payload.lua returns for each task granted. If the call
-- was sent before, the list has the keys of what it granted.
--
-- docs/fairness.md explains who gets what. In order:
--   1. tasks that finalise a job
--   2. one task that runs alone, if the session holds nothing; or the session is drained for it.
--      Half of the sessions do so at most, and others get as much work as such a task in between
--   3. the classes urgent, normal, bulk, in strict order but for a floor; in each class the tenant
--      with the least virtual time; of a tenant, the oldest job
--
-- A task is never split, so the last grant may exceed the room. The lease counts from the worker's
-- last heartbeat, because the caller may be the scheduler.

local FLOOR = 0.1 -- of every row-step granted, owed to each class below the highest with work
local MOST_OWED = 10 -- grants
local MAX_LANES = 256 -- looked at per class and checkpoint
local MAX_SUSPECTS = 64 -- jobs looked at per checkpoint
local QUARANTINE = 2 -- of so many sessions one may take tasks that run alone

local session, request, room = ARGV[1], ARGV[2], tonumber(ARGV[3])
local limit, ms, lowest = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])

-- A call that is sent again gets the same answer. A session that has a command, or whose lease has
-- run out, gets nothing.
local s = redis.call('HMGET', P .. 'session:' .. session,
  'checkpoints', 'command', 'request', 'granted', 'seen', 'room', 'turn')
if not s[1] then return refuse('LEASELOST', 'the session has ended') end
if s[3] == request then
  local granted = {}
  for key in string.gmatch(s[4], '%S+') do granted[#granted + 1] = key end
  return cjson.encode(granted)
end
redis.call('ZADD', P .. 'sessions', 'GT', s[5] + ms, session)
if s[2] or tonumber(redis.call('ZSCORE', P .. 'sessions', session)) <= now then return '[]' end
local turn = number(s[7])
local checkpoints = {}
for checkpoint in string.gmatch(s[1], '%d+') do checkpoints[#checkpoints + 1] = checkpoint end

-- A task that runs alone gets no company.
local holding = redis.call('HLEN', P .. 'held:' .. session)
if holding == 1 then
  local only = redis.call('HVALS', P .. 'held:' .. session)
  if unpack_held(only[1]).alone ~= SHARED then return '[]' end
end

local wanted -- lanes as a set, or nil for all
if ARGV[7] == 'only' then
  wanted = {}
  for at = 8, #ARGV do
    local lane = redis.call('HGET', P .. 'lane:numbers', ARGV[at])
    if lane then wanted[lane] = true end
  end
end

local batch = grant_batch(session)

local function full()
  return batch.pictures >= room or batch.tasks >= limit
end

local function done()
  return batch.write(request, turn + 1, s[6])
end

-- 1. Jobs to finalise: small, and a user waits for each.
while batch.tasks < limit do
  local key = redis.call('LPOP', P .. 'finalise')
  if not key then break end
  local job, name = split_key(key)
  local record = read_record(job, name)
  local head = read_job(job)
  if record and string.sub(record, 1, 1) == 'q' and head.state == 'c' then
    batch.add(job, head, name, record)
  end
end

-- 2. Tasks that run alone. A session that holds nothing takes one; otherwise it starts to drain, as
-- long as there are more of them than sessions that drain. Others wait for it meanwhile, and if
-- there are many of them, a tenant would take all workers. So half of the sessions take part at
-- most, and after each such task others get as much work as it was before one of their class or a
-- lower one is next.
local owed = {} -- checkpoint -> row-steps, to others
for at, steps in ipairs(redis.call('HMGET', P .. 'yielded', unpack(checkpoints))) do
  owed[checkpoints[at]] = number(steps)
end
local suspects, dropped = 0, 0 -- tasks; lanes of jobs that have expired
local suspect -- the one that would start

-- Whether it would start before one that was found earlier.
local function sooner(checkpoint)
  return not suspect or (owed[suspect.checkpoint] > 0 and owed[checkpoint] == 0)
end

local drains = redis.call('SISMEMBER', P .. 'draining', session) == 1

local function find_suspects(checkpoint, job, head)
  local names, records = read_suspects(job, checkpoint)
  for _, name in ipairs(names) do
    local record = records[name]
    -- A session that drains for such a task takes it whatever lanes it is offered meanwhile.
    if not wanted or drains or wanted[tostring(unpack_task(record).lane)] then
      suspects = suspects + 1
      if sooner(checkpoint) then
        suspect = {checkpoint = checkpoint, job = job, head = head, name = name, record = record}
      end
    end
  end
end

for _, checkpoint in ipairs(checkpoints) do
  local jobs = redis.call('ZRANGE', suspects_key(checkpoint), 0, MAX_SUSPECTS - 1)
  for _, job in ipairs(jobs) do
    local head = read_job(job)
    if not head or not alive(head) then
      redis.call('ZREM', suspects_key(checkpoint), job)
      show_listed_task(job)
    elseif overdue(head) then
      if dropped <= MAX_DROPPED then dropped = dropped + expire_job(job, head) end
    elseif head.class <= lowest then
      find_suspects(checkpoint, job, head)
    end
  end
  if #jobs == 0 and owed[checkpoint] > 0 then
    redis.call('HDEL', P .. 'yielded', checkpoint)
    owed[checkpoint] = 0
  end
end

-- How many sessions run a task alone; those that have finished are forgotten.
local function isolated()
  local running = 0
  for _, other in ipairs(redis.call('SMEMBERS', P .. 'isolated')) do
    local held = redis.call('HVALS', P .. 'held:' .. other)
    if #held == 1 and unpack_held(held[1]).alone ~= SHARED then
      running = running + 1
    else
      redis.call('SREM', P .. 'isolated', other)
    end
  end
  return running
end

local function run_alone()
  take_suspect(suspect.job, suspect.checkpoint, suspect.name)
  redis.call('SREM', P .. 'draining', session)
  redis.call('SADD', P .. 'isolated', session)
  local _, cost = batch.add(suspect.job, suspect.head, suspect.name, suspect.record)
  redis.call('HSET', P .. 'yielded', suspect.checkpoint, cost)
  return done()
end

-- Whether others are owed work before the suspect, and have some.
local function others_first()
  if owed[suspect.checkpoint] == 0 then return false end
  for class = URGENT, suspect.head.class do
    local lanes = P .. 'lanes:' .. suspect.checkpoint .. ':' .. class
    if redis.call('EXISTS', lanes) == 1 then return true end
  end
  return false
end

local may = false -- this session take part
if suspect then
  local draining = redis.call('SCARD', P .. 'draining')
  local share = math.max(1, math.floor(redis.call('ZCARD', P .. 'sessions') / QUARANTINE))
  may = drains or (draining < suspects and draining + isolated() < share)
  if may and (drains or not others_first()) then
    if holding + batch.tasks == 0 and room > 0 then return run_alone() end
    redis.call('SADD', P .. 'draining', session)
    return done()
  end
elseif lowest == BULK then
  redis.call('SREM', P .. 'draining', session)
end
if full() then return done() end

-- 3. Everything else, by class and tenant.

-- The lanes of a checkpoint and class that have ready tasks and that the caller wants.
local function ready_lanes(checkpoint, class)
  if class > lowest then return {} end
  local key = P .. 'lanes:' .. checkpoint .. ':' .. class
  local lanes = {}
  if wanted then
    for lane in pairs(wanted) do
      if redis.call('SISMEMBER', key, lane) == 1 then lanes[#lanes + 1] = lane end
    end
  else
    lanes = redis.call('SRANDMEMBER', key, MAX_LANES)
  end
  table.sort(lanes)
  return lanes
end

-- The lowest class that is owed work, otherwise the highest class that has work.
local function choose(queues)
  for class = BULK, URGENT, -1 do
    local queue = queues[class]
    if #queue.lanes > 0 and queue.times.of('owed') > 0 then return queue end
  end
  for class = URGENT, BULK do
    if #queues[class].lanes > 0 then return queues[class] end
  end
  return nil
end

-- After a grant of `cost` to `chosen`: each class below the highest one with work earns its floor,
-- and a class that was owed work pays with what it got. A class without work is owed nothing.
local function update_owed(queues, chosen, cost)
  local below = false
  for class = URGENT, BULK do
    local queue = queues[class]
    local owed = queue.times.of('owed')
    if #queue.lanes > 0 then
      local earned = below and FLOOR * cost or 0
      if queue == chosen then
        if owed > 0 then queue.times.set('owed', owed + earned - cost) end
      elseif below then
        queue.times.set('owed', math.min(owed + earned, MOST_OWED * cost))
      end
      below = true
    elseif owed ~= 0 and not wanted and class <= lowest then
      queue.times.set('owed', 0)
    end
  end
end

local function serve(checkpoint)
  local queues, granted = {}, 0
  for class = URGENT, BULK do
    queues[class] = fair_queue(checkpoint, class, ready_lanes(checkpoint, class), limit)
  end
  while not full() do
    local chosen = choose(queues)
    if not chosen then break end
    local cost = chosen.grant_next(batch.head_of, batch.add)
    if cost then
      update_owed(queues, chosen, cost)
      granted = granted + cost
    else
      chosen.lanes = {}
    end
  end
  for class = URGENT, BULK do queues[class].write() end
  if owed[checkpoint] > granted then
    redis.call('HSET', P .. 'yielded', checkpoint, owed[checkpoint] - granted)
  elseif owed[checkpoint] > 0 then
    redis.call('HDEL', P .. 'yielded', checkpoint)
  end
end

-- Sessions with several checkpoints take turns at which comes first.
for offset = 0, #checkpoints - 1 do
  if full() then break end
  serve(checkpoints[(turn + offset) % #checkpoints + 1])
end
-- Nothing else was there.
if may and holding + batch.tasks == 0 and room > 0 then return run_alone() end
return done()
