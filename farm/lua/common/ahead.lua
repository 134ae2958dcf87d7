-- What comes next, read ahead in blocks and written at once when a lease is at its end: a call into
-- the server costs as much as a page of Lua.
--
-- Between reading and `write` nothing else may change the index of ready work.

local TENANTS, JOBS = 16, 8 -- at most in a block
local FIRST_TASKS = 4 -- in a job's first block; each further one is twice as long

-- Virtual times of one checkpoint and class.
local function timetable(checkpoint, class)
  local key = P .. 'fair:' .. checkpoint .. ':' .. class
  local times, weights, changed = {}, {}, {}
  local table_ = {known = times}
  function table_.of(tenant)
    if not times[tenant] then times[tenant] = number(redis.call('HGET', key, tenant)) end
    return times[tenant]
  end
  function table_.read(tenants)
    local fresh = {}
    for _, tenant in ipairs(tenants) do
      if not weights[tenant] then fresh[#fresh + 1] = tenant end
    end
    if #fresh == 0 then return end
    local theirs = redis.call('HMGET', key, unpack(fresh))
    local shares = redis.call('HMGET', P .. 'weights', unpack(fresh))
    for at, tenant in ipairs(fresh) do
      times[tenant] = number(theirs[at])
      weights[tenant] = tonumber(shares[at]) or 1
    end
  end
  function table_.charge(tenant, cost)
    local start = table_.of(tenant)
    if start > table_.of('now') then table_.set('now', start) end
    table_.set(tenant, start + cost / weights[tenant])
  end
  function table_.set(tenant, value)
    times[tenant] = value
    changed[tenant] = true
  end
  function table_.write()
    local pairs_ = {}
    for tenant in pairs(changed) do
      pairs_[#pairs_ + 1] = tenant
      pairs_[#pairs_ + 1] = times[tenant]
    end
    if #pairs_ > 0 then redis.call('HSET', key, unpack(pairs_)) end
  end
  return table_
end

-- The ready tasks of a job in a lane.
local function task_line(job, lane)
  local key = ready_key(job, lane)
  local first = redis.call('HGET', P .. 'job:' .. job, 'h' .. lane)
  local names, records, at = {first or nil}, {}, 0
  local listed, block, ended = 0, FIRST_TASKS, false

  local function read()
    local fresh = redis.call('LRANGE', key, listed, listed + block - 1)
    listed = listed + #fresh
    ended = #fresh < block
    block = block * 2
    for _, name in ipairs(fresh) do names[#names + 1] = name end
    for name, record in pairs(read_records(job, {unpack(names, at + 1)})) do
      records[name] = record
    end
  end

  local line = {}
  -- Name and record of the next task, and whether it was the last.
  function line.take()
    if at == #names or (at == 0 and first) then read() end
    at = at + 1
    local name = names[at]
    if at == #names and not ended then read() end
    return name, records[name], at == #names
  end
  function line.write()
    if at == 0 then return end
    local taken = at
    if first then
      redis.call('HDEL', P .. 'job:' .. job, 'h' .. lane)
      taken = taken - 1
    end
    if taken > 0 then redis.call('LPOP', key, taken) end
  end
  return line
end

-- A tenant's jobs in a lane, in the order they came.
local function job_line(lane, class, tenant)
  local key = jobs_key(lane, class, tenant)
  local page, jobs, at, tasks, emptied, gone = nil, {}, 1, nil, {}, false

  local function remove()
    if #emptied == 0 then return end
    paged_remove_some(key, page, emptied)
    emptied = {}
  end

  local line = {}
  -- The first job that has something left, and its tasks; nil if there is none.
  function line.first()
    if at > #jobs and not gone then
      remove()
      page = redis.call('ZRANGE', key, 0, 0)[1]
      jobs = page and redis.call('ZRANGE', key .. ':' .. page, 0, JOBS - 1) or {}
      at, gone = 1, not page
    end
    local job = jobs[at]
    if job and not tasks then tasks = task_line(job, lane) end
    return job, tasks
  end
  -- The first job has nothing left. Returns whether another one has.
  function line.leave()
    tasks.write()
    tasks = nil
    emptied[#emptied + 1] = jobs[at]
    at = at + 1
    return line.first() ~= nil
  end
  function line.write()
    if tasks then tasks.write() end
    remove()
  end
  return line
end

-- The tenants of a lane, with their jobs. Their stored times may be behind the true ones, and never
-- are ahead of them.
local function tenant_line(lane, class, times, limit)
  local key = P .. 'tenants:' .. lane .. ':' .. class
  local tenants, stored, jobs, known = {}, {}, {}, times.known
  local last, more, head = -math.huge, true, nil
  local block = math.min(TENANTS, limit + 1)

  local function read()
    local fresh = redis.call('ZRANGE', key, #tenants, #tenants + block - 1, 'WITHSCORES')
    more = #fresh == 2 * block
    local names = {}
    for at = 1, #fresh, 2 do
      names[#names + 1] = fresh[at]
      tenants[#tenants + 1] = fresh[at]
      last = tonumber(fresh[at + 1])
      stored[fresh[at]] = last
    end
    times.read(names)
  end

  local function least()
    local best, time
    for at = 1, #tenants do
      local its = known[tenants[at]]
      if not best or its < time then best, time = tenants[at], its end
    end
    return best
  end

  local line = {tasks = 0, pictures = 0} -- that were taken
  -- The tenant whose turn it is, or nil.
  function line.first()
    if not head then
      head = least()
      while more and not (head and known[head] <= last) do
        read()
        head = least()
      end
    end
    return head
  end
  function line.jobs(tenant)
    jobs[tenant] = jobs[tenant] or job_line(lane, class, tenant)
    return jobs[tenant]
  end
  -- A tenant's time has changed.
  function line.moved(tenant)
    if head == tenant then head = nil end
  end
  -- The tenant has nothing left here.
  function line.leave(tenant)
    for at, other in ipairs(tenants) do
      if other == tenant then table.remove(tenants, at) end
    end
    jobs[tenant].write()
    jobs[tenant], head = nil, nil
    retire(lane, class, tenant)
  end
  function line.write()
    for _, its in pairs(jobs) do its.write() end
    local fresh = {}
    for _, tenant in ipairs(tenants) do
      if known[tenant] > stored[tenant] then
        fresh[#fresh + 1] = known[tenant]
        fresh[#fresh + 1] = tenant
      end
    end
    if #fresh > 0 then redis.call('ZADD', key, unpack(fresh)) end
  end
  return line
end
