#!lua flags=allow-oom
-- with: paged ready ahead settle offer
-- QUEUED -> LEASED: grants tasks to a session, to its inbox and to the caller.
--
-- ARGV  session, request (the same when a call is sent again), room (pictures), limit (tasks),
--       lease (ms), lowest class, "any" or "only", then the lanes
--
-- draining   set: sessions that get nothing until they hold nothing, for a task that runs alone
--
-- The last grant may be larger than the room left: a task is never split. The lease counts from
-- the worker's last sign of life, since the caller may be the scheduler.
-- Returns as JSON for each task granted what common/offer.lua says; if the call was sent before, its
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
  return cjson.encode(granted)
end
redis.call('ZADD', P .. 'sessions', 'GT', s[5] + ms, session)
if s[2] or tonumber(redis.call('ZSCORE', P .. 'sessions', session)) <= now then return '[]' end

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
  if #granted == 0 then return '[]' end
  redis.call('HSET', P .. 'held:' .. session, unpack(held))
  redis.call('RPUSH', P .. 'inbox:' .. session, unpack(granted))
  redis.call('HSET', P .. 'session:' .. session, 'request', request,
    'granted', table.concat(granted, ' '), 'turn', number(s[7]) + 1)
  local pictures = 0
  for job, its in pairs(given) do
    write_records(job, its.records)
    local changes = {nq = -its.tasks, nl = its.tasks, lp = its.pictures}
    for lane, ready in pairs(its.ready) do changes['r' .. lane] = -ready end
    count(job, changes)
    pictures = pictures + its.pictures
    if not its.head.begun then
      redis.call('HSET', P .. 'job:' .. job, 'b', now)
      event(job, 'running')
    end
  end
  if s[6] then
    redis.call('HSET', P .. 'session:' .. session, 'room', math.max(0, s[6] - pictures))
  end
  return cjson.encode(offers)
end

local function grant(job, head, name, record)
  local key = lease_key(job, name)
  local started, remembered, task = start_record(record, session)
  granted[#granted + 1] = key
  held[#held + 1] = key
  held[#held + 1] = remembered
  offers[#offers + 1] = offer(key, job, head, name, task)
  local its = given[job]
  if not its then
    its = {head = head, records = {}, ready = {}, tasks = 0, pictures = 0}
    given[job] = its
  end
  its.records[#its.records + 1] = name
  its.records[#its.records + 1] = started
  local pictures = tonumber(task.pictures)
  if task.lane ~= '0' then
    its.tasks = its.tasks + 1
    its.pictures = its.pictures + pictures
    room = room - pictures
  end
  return its, pictures, tonumber(task.cost)
end

local holding = redis.call('HLEN', P .. 'held:' .. session)
if holding == 1 then
  local only = redis.call('HVALS', P .. 'held:' .. session)
  if unpack_held(only[1]).alone == 1 then return '[]' end
end

-- Jobs to finalise: small, and somebody waits for them.
while #granted < limit do
  local key = redis.call('LPOP', P .. 'finalise')
  if not key then break end
  local job, name = split_key(key)
  local record = read_record(job, name)
  local head = read_job(job)
  if record and string.sub(record, 1, 1) == 'q' and head.state == 'c' then
    grant(job, head, name, record)
  end
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
    elseif overdue(head) then
      expire_job(job, head)
      redis.call('ZREM', place, key)
    elseif not head.paused and head.class <= lowest
        and (not wanted or wanted[tostring(task.lane)]) then
      if holding + #granted == 0 and room > 0 then
        redis.call('ZREM', place, key)
        redis.call('SREM', P .. 'draining', session)
        grant(job, head, name, pack_task(task))
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
  return {class = class, lanes = lanes, lines = {}, times = timetable(checkpoint, class)}
end

local function write_lines(f)
  for lane, line in pairs(f.lines) do
    line.write()
    if line.tasks > 0 then count_work(lane .. ':' .. f.class, -line.tasks, -line.pictures) end
  end
  f.lines = {}
end

-- Grants the next task of the field. Returns its cost, or nil if there is none.
local function grant_next(f)
  while true do
    local best, tenant, time
    for _, lane in ipairs(f.lanes) do
      f.lines[lane] = f.lines[lane] or tenant_line(lane, f.class, f.times, limit)
      local first = f.lines[lane].first()
      if first and (not best or f.times.known[first] < time) then
        best, tenant, time = lane, first, f.times.known[first]
      end
    end
    if not best then return nil end
    local line = f.lines[best]
    local jobs = line.jobs(tenant)
    local job, tasks = jobs.first()
    local head = given[job] and given[job].head or read_job(job)
    if overdue(head) then
      write_lines(f)
      expire_job(job, head)
    else
      local name, record, last = tasks.take()
      if last and not jobs.leave() then line.leave(tenant) end
      local its, pictures, cost = grant(job, head, name, record)
      its.ready[best] = (its.ready[best] or 0) + pictures
      line.tasks = line.tasks + 1
      line.pictures = line.pictures + pictures
      f.times.charge(tenant, cost)
      for _, lane in ipairs(f.lanes) do f.lines[lane].moved(tenant) end
      return cost
    end
  end
end

-- Urgent, then normal, then bulk; but a lower class that is owed its floor goes first.
local function serve(checkpoint)
  local fields, open = {}, 0
  for class = URGENT, BULK do
    local f = field(checkpoint, class)
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
  for class = URGENT, BULK do
    write_lines(fields[class])
    fields[class].times.write()
  end
end

-- Sessions with several checkpoints take turns in which comes first.
for offset = 0, #checkpoints - 1 do
  if room <= 0 or #granted >= limit then break end
  serve(checkpoints[(number(s[7]) + offset) % #checkpoints + 1])
end
return done()
