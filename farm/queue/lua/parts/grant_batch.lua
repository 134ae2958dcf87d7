-- The grants of one lease call: collected, then written together, because redis.call dominates the
-- cost.
--
-- requires: prelude, job_record, task_record, lease_payload, tallies

local function grant_batch(session)
  local keys, held, payloads = {}, {}, {}
  local jobs = {} -- job -> what was granted of it
  local batch = {tasks = 0, pictures = 0}

  -- The job's header, read once.
  function batch.head_of(job)
    return jobs[job] and jobs[job].head or read_job(job)
  end

  -- Adds a task; `lane` is the one whose ready pictures it was counted in, or nil. Returns its
  -- pictures and its cost.
  function batch.add(job, head, name, record, lane)
    local key = lease_key(job, name)
    local started, remembered, task = start_record(record, session)
    keys[#keys + 1] = key
    held[#held + 1] = key
    held[#held + 1] = remembered
    payloads[#payloads + 1] = lease_payload(key, job, head, name, task)
    local its = jobs[job]
    if not its then
      its = {head = head, records = {}, ready = {}, tasks = 0, pictures = 0}
      jobs[job] = its
    end
    its.records[#its.records + 1] = name
    its.records[#its.records + 1] = started
    local pictures = tonumber(task.pictures)
    if task.lane ~= '0' then
      its.tasks = its.tasks + 1
      its.pictures = its.pictures + pictures
      batch.pictures = batch.pictures + pictures
    end
    if lane then its.ready[lane] = (its.ready[lane] or 0) + pictures end
    batch.tasks = batch.tasks + 1
    return pictures, tonumber(task.cost)
  end

  local function write_job(job, its)
    write_records(job, its.records)
    local changes = {nq = -its.tasks, nl = its.tasks, lp = its.pictures}
    for lane, pictures in pairs(its.ready) do changes['r' .. lane] = -pictures end
    count(job, changes)
    if not its.head.begun then
      redis.call('HSET', P .. 'job:' .. job, 'b', now)
      event(job, 'running')
      tally_wait(its.head.class, its.head.created)
    end
  end

  -- `request`, `turn` and `room` are stored with the session; `room` is what it last reported, or
  -- false. Returns the payloads as JSON.
  function batch.write(request, turn, room)
    if batch.tasks == 0 then return '[]' end
    redis.call('HSET', P .. 'held:' .. session, unpack(held))
    redis.call('RPUSH', P .. 'inbox:' .. session, unpack(keys))
    redis.call('HSET', P .. 'session:' .. session, 'request', request,
      'granted', table.concat(keys, ' '), 'turn', turn)
    for job, its in pairs(jobs) do write_job(job, its) end
    tally('leases', batch.tasks)
    if room then
      redis.call('HSET', P .. 'session:' .. session, 'room', math.max(0, room - batch.pictures))
    end
    return cjson.encode(payloads)
  end

  return batch
end
