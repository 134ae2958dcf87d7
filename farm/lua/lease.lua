#!lua flags=allow-oom
-- with: paged ready settle offer
-- QUEUED -> LEASED: grants tasks to a session, to its inbox and to the caller.
--
-- ARGV  session, request (the same when a call is sent again), room (pictures), limit (tasks),
--       lease (ms), lowest class, "any" or "only", then the lanes
--
-- draining   set: sessions that get nothing until they hold nothing, for a task that runs alone
--
-- The last grant may be larger than the room left: a task is never split. The lease counts from
-- the worker's last sign of life, since the caller may be the scheduler.
-- Returns for each task granted what common/offer.lua says; if the call was sent before, those of its
-- keys alone.
local FLOOR = 0.1 -- of the work, for each class below the busiest
local MOST_OWED = 10 -- grants
local MAX_LANES = 256 -- looked at per class and checkpoint
local MAX_SUSPECTS = 64 -- looked at per checkpoint

local session, request, room = ARGV[1], ARGV[2], tonumber(ARGV[3])
local limit, ms, lowest = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local s = redis.call('HMGET', P .. 'session:' .. session,
  'checkpoints', 'command', 'request', 'granted', 'seen', 'room', 'turn')
if not s[1] then return refuse('LEASELOST', 'the session has ended') end
if s[3] == request then
  local granted = {}
  for key in string.gmatch(s[4], '%S+') do granted[#granted + 1] = key end
  return granted
end
redis.call('ZADD', P .. 'sessions', 'GT', s[5] + ms, session)
if s[2] or tonumber(redis.call('ZSCORE', P .. 'sessions', session)) <= now then return {} end

local wanted
if ARGV[7] == 'only' then
  wanted = {}
  for at = 8, #ARGV do
    local lane = redis.call('HGET', P .. 'lane:numbers', ARGV[at])
    if lane then wanted[lane] = true end
  end
end

-- What was granted is written at the end, since each call costs as much as a line of Lua costs
-- little: jobs' records and counters, what the session holds, and its inbox.
local granted, held, given, offers = {}, {}, {}, {}

local function done()
  if #granted == 0 then return offers end
  redis.call('HSET', P .. 'held:' .. session, unpack(held))
  redis.call('RPUSH', P .. 'inbox:' .. session, unpack(granted))
  redis.call('HSET', P .. 'session:' .. session, 'request', request,
    'granted', table.concat(granted, ' '), 'turn', number(s[7]) + 1)
  local pictures = 0
  for job, its in pairs(given) do
    write_records(job, its.records)
    count(job, {nq = -its.tasks, nl = its.tasks, lp = its.pictures})
    for lane, taken in pairs(its.lanes) do
      count_ready(job, its.head, lane, -taken.tasks, -taken.pictures)
    end
    pictures = pictures + its.pictures
    if redis.call('HSETNX', P .. 'job:' .. job, 'b', now) == 1 then event(job, 'running') end
  end
  if s[6] then
    redis.call('HSET', P .. 'session:' .. session, 'room', math.max(0, s[6] - pictures))
  end
  return offers
end

local function grant(job, head, name, task)
  local key = lease_key(job, name)
  granted[#granted + 1] = key
  held[#held + 1] = key
  held[#held + 1] = take(session, task)
  offers[#offers + 1] = offer(key, job, head, name, task)
  local its = given[job]
  if not its then
    its = {head = head, records = {}, lanes = {}, tasks = 0, pictures = 0}
    given[job] = its
  end
  its.records[#its.records + 1] = name
  its.records[#its.records + 1] = pack_task(task)
  if task.lane ~= 0 then
    its.tasks = its.tasks + 1
    its.pictures = its.pictures + task.pictures
    room = room - task.pictures
  end
  return its
end

local holding = redis.call('HLEN', P .. 'held:' .. session)
if holding == 1 then
  local only = redis.call('HVALS', P .. 'held:' .. session)
  if unpack_held(only[1]).alone == 1 then return {} end
end

-- Jobs to finalise: small, and somebody waits for them.
while #granted < limit do
  local key = redis.call('LPOP', P .. 'finalise')
  if not key then break end
  local job, name = split_key(key)
  local task = read_task(job, name)
  local head = read_job(job)
  if task and task.state == 'q' and head.state == 'c' then grant(job, head, name, task) end
end

local checkpoints = {}
for checkpoint in string.gmatch(s[1], '%d+') do checkpoints[#checkpoints + 1] = checkpoint end

-- Tasks that run alone: a session that holds nothing takes one; while there are more of them than
-- sessions that make themselves free, this one does.
local suspects = 0
for _, checkpoint in ipairs(checkpoints) do
  local place = P .. 'suspects:' .. checkpoint
  for _, key in ipairs(redis.call('ZRANGE', place, 0, MAX_SUSPECTS - 1)) do
    local job, name = split_key(key)
    local head = read_job(job)
    local task = head and read_task(job, name)
    if not task or task.state ~= 'q' or head.late or (head.state ~= 'o' and head.state ~= 'c') then
      redis.call('ZREM', place, key)
    elseif head.deadline and head.deadline <= now then
      expire_job(job, head)
      redis.call('ZREM', place, key)
    elseif not head.paused and head.class <= lowest
        and (not wanted or wanted[tostring(task.lane)]) then
      if holding + #granted == 0 and room > 0 then
        redis.call('ZREM', place, key)
        redis.call('SREM', P .. 'draining', session)
        grant(job, head, name, task)
        return done()
      end
      suspects = suspects + 1
    end
  end
end
if suspects > 0 then
  if redis.call('SISMEMBER', P .. 'draining', session) == 1 then return done() end
  if redis.call('SCARD', P .. 'draining') < suspects then
    redis.call('SADD', P .. 'draining', session)
    return done()
  end
elseif lowest == BULK then
  redis.call('SREM', P .. 'draining', session)
end
if room <= 0 or #granted >= limit then return done() end

-- Virtual times of one checkpoint and class, read once and written at the end.
local function timetable(checkpoint, class)
  local key = P .. 'fair:' .. checkpoint .. ':' .. class
  local times, weights, changed = {}, {}, {}
  local table_ = {}
  function table_.of(tenant)
    if not times[tenant] then times[tenant] = number(redis.call('HGET', key, tenant)) end
    return times[tenant]
  end
  function table_.charge(tenant, cost)
    if not weights[tenant] then
      weights[tenant] = tonumber(redis.call('HGET', P .. 'weights', tenant)) or 1
    end
    local start = table_.of(tenant)
    if start > table_.of('now') then
      times.now = start
      changed.now = true
    end
    times[tenant] = start + cost / weights[tenant]
    changed[tenant] = true
  end
  function table_.set(tenant, value)
    times[tenant] = value
    changed[tenant] = true
  end
  function table_.write()
    for tenant in pairs(changed) do redis.call('HSET', key, tenant, times[tenant]) end
    changed = {}
  end
  return table_
end

-- Everything that a lease needs of one checkpoint and class.
local function field(checkpoint, class)
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
  return {checkpoint = checkpoint, class = class, lanes = lanes, heads = {}}
end

-- The tenant of a lane with the least virtual time.
local function first_tenant(f, lane)
  local tenants = P .. 'tenants:' .. lane .. ':' .. f.class
  while true do
    local first = redis.call('ZRANGE', tenants, 0, 0, 'WITHSCORES')
    if not first[1] then return nil end
    local true_time = f.times.of(first[1])
    if true_time <= tonumber(first[2]) then return {tenant = first[1], time = true_time} end
    redis.call('ZADD', tenants, true_time, first[1])
  end
end

-- Grants the next task of the field. Returns its cost, or nil if there is none.
local function grant_next(f)
  while true do
    local best, best_lane
    for _, lane in ipairs(f.lanes) do
      if f.heads[lane] == nil then f.heads[lane] = first_tenant(f, lane) or false end
      local head = f.heads[lane]
      if head and (not best or head.time < best.time) then best, best_lane = head, lane end
    end
    if not best then return nil end
    local job = paged_first(jobs_key(best_lane, f.class, best.tenant))
    local head = given[job] and given[job].head or read_job(job)
    if head.deadline and head.deadline <= now then
      expire_job(job, head)
      f.heads = {}
    else
      local name = ready_take(job, best_lane)
      local task = read_task(job, name)
      if redis.call('EXISTS', ready_key(job, best_lane)) == 0 then deactivate(job, head, task.lane) end
      local its = grant(job, head, name, task)
      local taken = its.lanes[task.lane] or {tasks = 0, pictures = 0}
      its.lanes[task.lane] = taken
      taken.tasks = taken.tasks + 1
      taken.pictures = taken.pictures + task.pictures
      f.times.charge(best.tenant, task.cost)
      for lane, other in pairs(f.heads) do
        if lane == best_lane or (other and other.tenant == best.tenant) then f.heads[lane] = nil end
      end
      return task.cost
    end
  end
end

-- Urgent, then normal, then bulk; but a lower class that is owed its floor goes first.
local function serve(checkpoint)
  local fields, open = {}, 0
  for class = URGENT, BULK do
    local f = field(checkpoint, class)
    f.times = timetable(checkpoint, class)
    if class > lowest then f.lanes = {} end
    fields[class] = f
    open = open + #f.lanes
  end
  while open > 0 and room > 0 and #granted < limit do
    local chosen
    for class = BULK, URGENT, -1 do
      local f = fields[class]
      if #f.lanes > 0 and f.times.of('owed') > 0 then chosen = chosen or f end
    end
    for class = URGENT, BULK do
      if #fields[class].lanes > 0 then chosen = chosen or fields[class] end
    end
    local cost = grant_next(chosen)
    if cost then
      local below = false
      for class = URGENT, BULK do
        local f = fields[class]
        local owed = f.times.of('owed')
        if #f.lanes > 0 then
          local earned = below and FLOOR * cost or 0
          if f == chosen then
            if owed > 0 then f.times.set('owed', owed + earned - cost) end
          elseif below then
            f.times.set('owed', math.min(owed + earned, MOST_OWED * cost))
          end
          below = true
        elseif owed ~= 0 and not wanted and class <= lowest then
          f.times.set('owed', 0)
        end
      end
    else
      open = open - #chosen.lanes
      chosen.lanes = {}
    end
  end
  for class = URGENT, BULK do fields[class].times.write() end
end

-- Sessions with several checkpoints take turns in which comes first.
for offset = 0, #checkpoints - 1 do
  if room <= 0 or #granted >= limit then break end
  serve(checkpoints[(number(s[7]) + offset) % #checkpoints + 1])
end
return done()
