-- How a job is submitted. Each step is checked as a whole before anything is written.
--
-- requires: constants, prelude, interning, job_record, task_record, paged_set, lane_use,
-- requires: ready_index, job_lifecycle
--
--   keys:<tenant>    hash: idempotency key -> job
--   of:<tenant>      paged set: job -> sequence; all of a tenant's jobs
--   server           hash: settled: run_id of the server whose append-only file was rewritten

local FINGERPRINT = 32 -- hexadecimal digits of it that are kept
local MAX_BEHIND = 10000 -- tasks; behind more of them a chunk is read from the store instead

-- Some server versions lose later writes at the next start if a crash cut the append-only file off
-- inside a script's transaction, so after every start it is rewritten before new work is taken.
local function aof_rewritten()
  local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
  return redis.call('HGET', P .. 'server', 'settled') == run_id
end

-- Returns the job that an earlier call of the same submission made, or nil and an error, or nil.
local function find_submitted(job, tenant, fingerprint, key)
  local same = redis.call('HMGET', P .. 'job:' .. job, 'fp', 't')
  local owner = tenant_number(tenant)
  fingerprint = string.sub(fingerprint, 1, FINGERPRINT)
  if same[1] then
    if same[1] == fingerprint and same[2] == owner then return {job, 1} end
    return nil, refuse('CONFLICT', 'job ' .. job .. ' exists with other content')
  end
  if key == '' or not owner then return nil end
  local known = redis.call('HGET', P .. 'keys:' .. owner, key)
  if not known then return nil end
  if redis.call('HGET', P .. 'job:' .. known, 'fp') == fingerprint then return {known, 0} end
  return nil, refuse('CONFLICT', 'the idempotency key was used for job ' .. known
    .. ' with other content', 'send the same content, or another key')
end

local function open_job(job, tenant, fingerprint, key, class, options, deadline)
  local owner = intern('tenant', tenant)
  local sequence = redis.call('HINCRBY', P .. 'counters', 'jobs of ' .. owner, 1)
  local header = {
    's', 'o', 't', owner, 'p', class, 'q', sequence, 'c', now, 'o', options,
    'fp', string.sub(fingerprint, 1, FINGERPRINT),
  }
  if deadline ~= '' then
    header[#header + 1] = 'dl'
    header[#header + 1] = deadline
    redis.call('ZADD', P .. 'deadlines', deadline, job)
  end
  if key ~= '' then
    header[#header + 1] = 'ik'
    header[#header + 1] = key
    redis.call('HSET', P .. 'keys:' .. owner, key, job)
  end
  redis.call('HSET', P .. 'job:' .. job, unpack(header))
  paged_add(P .. 'of:' .. owner, sequence, job)
end

-- Tasks are a list of {number, lane, pictures, cost, chunk as JSON or empty}, all of them texts.
-- `owner` is the tenant's number, or nil if it has none yet. The job has none of them yet. Returns an
-- error, or nil.
local function check_tasks(job, owner, tasks)
  local lanes, seen = {}, {}
  for _, task in ipairs(tasks) do
    local name = task[1]
    if seen[name] then
      return refuse('CONFLICT', 'task ' .. name .. ' of job ' .. job .. ' exists')
    end
    seen[name] = true
    if not seen[task[2]] then lanes[#lanes + 1] = task[2] end
    seen[task[2]] = true
  end
  if not lanes_fit(owner or '', lanes) then
    return refuse('OVERQUOTA', 'unfinished jobs would be of more than ' .. MAX_TENANT_LANES
      .. ' checkpoints, modes and sizes', 'submit them when some are done, or use fewer sizes')
  end
  return nil
end

local function write_tasks(job, tasks, rejected)
  local head = read_job(job)
  local records, texts, by_lane, order, total, cost = {}, {}, {}, {}, 0, 0
  local known, behind = {}, {} -- lane's text -> its number; lane -> tasks that were ready before
  for _, task in ipairs(tasks) do
    local name, text, pictures = task[1], task[2], tonumber(task[3])
    local lane = known[text]
    if not lane then
      lane = intern_lane(text)
      known[text] = lane
      behind[lane] = number(redis.call('HGET', P .. 'work:tasks', lane .. ':' .. head.class))
    end
    records[#records + 1] = name
    records[#records + 1] = fresh_record(lane, task[3], task[4])
    if task[5] ~= '' and behind[lane] < MAX_BEHIND then
      texts[#texts + 1] = name
      texts[#texts + 1] = task[5]
    end
    local group = by_lane[lane]
    if not group then
      group = {names = {}, pictures = 0}
      by_lane[lane] = group
      order[#order + 1] = lane
    end
    group.names[#group.names + 1] = name
    group.pictures = group.pictures + pictures
    total = total + pictures
    cost = cost + task[4]
  end
  if #records > 0 then
    write_records(job, records)
    use_lanes(job, head.tenant, order)
  end
  if #texts > 0 then redis.call('HSET', P .. 'text:' .. job, unpack(texts)) end
  for _, lane in ipairs(order) do
    local group = by_lane[lane]
    ready_append(job, lane, group.names)
    count_ready(job, head, lane, #group.names, group.pictures)
    if not head.paused then activate(job, head, lane) end
  end
  count(job, {n = #records / 2, nq = #records / 2, i = total, k = cost, rj = rejected})
end

local function close_job(job, pieces)
  redis.call('HSET', P .. 'job:' .. job, 's', 'c', 'cl', pieces)
  event(job, 'queued')
  finalise_when_ended(job, nil)
end
