-- The ready work of one checkpoint and class, shared fairly between tenants by start-time fair
-- queueing over row-steps. docs/fairness.md explains the algorithm.
--
-- requires: prelude, job_record, task_record, paged_set, ready_index, job_lifecycle
--
-- A lease reads ahead in blocks and writes its changes once at the end, because redis.call
-- dominates the cost. Between reading and `write` nothing else may change the index of ready work.

local TENANTS, JOBS = 16, 8 -- at most in a block
local FIRST_TASKS = 4 -- in a job's first block; each further one is twice as long

-- The virtual times of tenants in one checkpoint and class, and the numbers kept with them ("now",
-- "owed").
local function virtual_times(checkpoint, class)
  local key = P .. 'fair:' .. checkpoint .. ':' .. class
  local known, weights, changed = {}, {}, {}
  local times = {known = known}
  function times.of(tenant)
    if not known[tenant] then known[tenant] = number(redis.call('HGET', key, tenant)) end
    return known[tenant]
  end
  function times.read(tenants)
    local fresh = {}
    for _, tenant in ipairs(tenants) do
      if not weights[tenant] then fresh[#fresh + 1] = tenant end
    end
    if #fresh == 0 then return end
    local stored = redis.call('HMGET', key, unpack(fresh))
    local shares = redis.call('HMGET', P .. 'weights', unpack(fresh))
    for at, tenant in ipairs(fresh) do
      known[tenant] = number(stored[at])
      weights[tenant] = tonumber(shares[at]) or 1
    end
  end
  function times.set(tenant, value)
    known[tenant] = value
    changed[tenant] = true
  end
  -- The tenant gets a grant: the class's clock moves to the grant's start, and the tenant's time
  -- to its end.
  function times.charge(tenant, cost)
    local start = times.of(tenant)
    if start > times.of('now') then times.set('now', start) end
    times.set(tenant, start + cost / weights[tenant])
  end
  function times.write()
    local entries = {}
    for tenant in pairs(changed) do
      entries[#entries + 1] = tenant
      entries[#entries + 1] = known[tenant]
    end
    if #entries > 0 then redis.call('HSET', key, unpack(entries)) end
  end
  return times
end

-- Takes the ready tasks of a job in a lane, in order.
local function task_cursor(job, lane)
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

  local cursor = {}
  -- Returns the name and record of the next task, and whether it was the last.
  function cursor.take()
    if at == #names or (at == 0 and first) then read() end
    at = at + 1
    local name = names[at]
    if at == #names and not ended then read() end
    return name, records[name], at == #names
  end
  function cursor.write()
    if at == 0 then return end
    local taken = at
    if first then
      redis.call('HDEL', P .. 'job:' .. job, 'h' .. lane)
      taken = taken - 1
    end
    if taken > 0 then redis.call('LPOP', key, taken) end
  end
  return cursor
end

-- Goes through a tenant's jobs in a lane, in the order they were submitted.
local function job_cursor(lane, class, tenant)
  local key = jobs_key(lane, class, tenant)
  local page, jobs, at, tasks, emptied, gone = nil, {}, 1, nil, {}, false

  local function remove_emptied()
    if #emptied == 0 then return end
    paged_remove_some(key, page, emptied)
    emptied = {}
  end

  local cursor = {}
  -- Returns the first job with ready tasks and the cursor over them, or nil.
  function cursor.first()
    if at > #jobs and not gone then
      remove_emptied()
      page = redis.call('ZRANGE', key, 0, 0)[1]
      jobs = page and redis.call('ZRANGE', key .. ':' .. page, 0, JOBS - 1) or {}
      at, gone = 1, not page
    end
    local job = jobs[at]
    if job and not tasks then tasks = task_cursor(job, lane) end
    return job, tasks
  end
  -- The first job has no more ready tasks. Returns whether another job has some.
  function cursor.leave()
    tasks.write()
    tasks = nil
    emptied[#emptied + 1] = jobs[at]
    at = at + 1
    return cursor.first() ~= nil
  end
  function cursor.write()
    if tasks then tasks.write() end
    remove_emptied()
  end
  return cursor
end

-- Finds the tenant of a lane with the least virtual time. The times stored with the lane may be too
-- low but never too high, so reading may stop once the least true time known is at most the last
-- stored one.
local function tenant_cursor(lane, class, times, limit)
  local key = P .. 'tenants:' .. lane .. ':' .. class
  local tenants, stored, jobs, known = {}, {}, {}, times.known
  local last, more, front = -math.huge, true, nil
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

  local cursor = {tasks = 0, pictures = 0} -- that were taken
  -- Returns the tenant whose turn it is, or nil.
  function cursor.first()
    if not front then
      front = least()
      while more and not (front and known[front] <= last) do
        read()
        front = least()
      end
    end
    return front
  end
  function cursor.jobs(tenant)
    jobs[tenant] = jobs[tenant] or job_cursor(lane, class, tenant)
    return jobs[tenant]
  end
  -- A tenant's virtual time has changed.
  function cursor.moved(tenant)
    if front == tenant then front = nil end
  end
  -- The tenant has no more ready tasks here.
  function cursor.leave(tenant)
    for at, other in ipairs(tenants) do
      if other == tenant then table.remove(tenants, at) end
    end
    jobs[tenant].write()
    jobs[tenant], front = nil, nil
    retire(lane, class, tenant)
  end
  function cursor.write()
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
  return cursor
end

-- The queue of one checkpoint and class, over these lanes. `limit` is the most tasks taken.
local function fair_queue(checkpoint, class, lanes, limit)
  local times = virtual_times(checkpoint, class)
  local cursors = {} -- lane -> its tenant cursor
  local queue = {lanes = lanes, times = times}
  local dropped = 0 -- lanes of jobs that have expired

  -- The lane and the tenant whose virtual time is least.
  local function least()
    local best, tenant, time
    for _, lane in ipairs(queue.lanes) do
      cursors[lane] = cursors[lane] or tenant_cursor(lane, class, times, limit)
      local first = cursors[lane].first()
      if first and (not best or times.known[first] < time) then
        best, tenant, time = lane, first, times.known[first]
      end
    end
    return best, tenant
  end

  local function write_cursors()
    for lane, cursor in pairs(cursors) do
      cursor.write()
      if cursor.tasks > 0 then
        count_backlog(lane .. ':' .. class, -cursor.tasks, -cursor.pictures)
      end
    end
    cursors = {}
  end

  -- Takes the next task and gives it to `grant`(job, head, name, record, lane), which returns its
  -- pictures and its cost; `head_of`(job) reads a job. Returns the cost, or nil if none is left, or if
  -- very much has expired meanwhile.
  function queue.grant_next(head_of, grant)
    while dropped <= MAX_DROPPED do
      local lane, tenant = least()
      if not lane then return nil end
      local cursor = cursors[lane]
      local jobs = cursor.jobs(tenant)
      local job, tasks = jobs.first()
      local head = head_of(job)
      if overdue(head) then
        write_cursors()
        dropped = dropped + expire_job(job, head)
      else
        local name, record, last = tasks.take()
        if last and not jobs.leave() then cursor.leave(tenant) end
        local pictures, cost = grant(job, head, name, record, lane)
        cursor.tasks = cursor.tasks + 1
        cursor.pictures = cursor.pictures + pictures
        times.charge(tenant, cost)
        for _, other in ipairs(queue.lanes) do cursors[other].moved(tenant) end
        return cost
      end
    end
    return nil
  end
  function queue.write()
    write_cursors()
    times.write()
  end
  return queue
end
