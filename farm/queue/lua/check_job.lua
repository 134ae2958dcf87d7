#!lua flags=allow-oom
-- Recounts a job's tasks, looks for each of them where its state says it is, and repairs what is
-- wrong.
--
-- requires: prelude, job_record, task_record, held_record, receipt, paged_set, lane_use,
-- requires: ready_index, job_lifecycle
--
-- ARGV  job, 1 to repair or 0 to report only
--
-- Takes some microseconds per task, during which Redis does nothing else.
-- Returns a line for each finding.
local job, repair = ARGV[1], ARGV[2] == '1'
local head = read_job(job)
if not head then return {} end
local found = {}
local function find(text) found[#found + 1] = text end

-- What the records give.
local counted = {
  n = 0, nq = 0, nl = 0, nw = 0, nd = 0, nf = 0, nc = 0, nx = 0,
  k = 0, i = 0, id = 0, ['if'] = 0, ix = 0, lp = 0, rd = 0, rf = 0,
}
local ready, finalise = {}, nil
local lanes = {}
local entries = redis.call('HGETALL', P .. 'task:' .. job)
local first = redis.call('HGET', P .. 'job:' .. job, '0')
if first then
  entries[#entries + 1] = '0'
  entries[#entries + 1] = first
end
for at = 1, #entries, 2 do
  local name, task = entries[at], unpack_task(entries[at + 1])
  local generation = tonumber(string.match(name, '^(%d+)/')) or 0
  if task.lane == 0 then
    if generation == head.generation then finalise = {name = name, task = task} end
  else
    lanes[task.lane] = true
    counted.n = counted.n + 1
    if generation == 0 then
      counted.i = counted.i + task.pictures
      counted.k = counted.k + task.cost
    else
      -- A retried picture failed once and is no longer counted for it.
      counted['if'] = counted['if'] - task.pictures
    end
    local state = seen_state(head, task)
    if state == 'q' then
      counted.nq = counted.nq + 1
      ready[#ready + 1] = {name = name, task = task}
    elseif state == 'w' then
      counted.nw = counted.nw + 1
      if not redis.call('ZSCORE', P .. 'waiting', lease_key(job, name)) then
        find('task ' .. name .. ' waits, but is not due at any time')
        if repair then redis.call('ZADD', P .. 'waiting', now, lease_key(job, name)) end
      end
    elseif state == 'l' then
      local held = redis.call('HGET', P .. 'held:' .. task.session, lease_key(job, name))
      local exists = redis.call('ZSCORE', P .. 'sessions', task.session)
      if held and exists then
        local entry = unpack_held(held)
        counted.rd = counted.rd + entry.done
        counted.rf = counted.rf + entry.failed
        counted.nl = counted.nl + 1
        counted.lp = counted.lp + task.pictures
      else
        find('task ' .. name .. ' is leased, but no session holds it')
        if repair then
          task.state, task.session = 'q', ''
          write_task(job, name, task)
          ready[#ready + 1] = {name = name, task = task}
          counted.nq = counted.nq + 1
        else
          counted.nl = counted.nl + 1
          counted.lp = counted.lp + task.pictures
        end
      end
    elseif state == 'd' then
      local done, failed = receipt_pictures(task)
      counted.nd = counted.nd + 1
      counted.id = counted.id + done
      counted['if'] = counted['if'] + failed
    elseif state == 'f' then
      counted.nf = counted.nf + 1
      counted['if'] = counted['if'] + task.pictures
    elseif state == 'c' then
      counted.nc = counted.nc + 1
    elseif state == 'e' then
      counted.nx = counted.nx + 1
      counted['if'] = counted['if'] + task.pictures
      counted.ix = counted.ix + task.pictures
    end
  end
end

for field, value in pairs(counted) do
  local stored = number(redis.call('HGET', P .. 'job:' .. job, field))
  if stored ~= value then
    find('counter ' .. field .. ' is ' .. stored .. '; its tasks give ' .. value)
    if repair then redis.call('HSET', P .. 'job:' .. job, field, value) end
  end
end

-- Every queued task is in the index exactly once.
local expected, alone = {}, {}
for _, entry in ipairs(ready) do
  if entry.task.alone ~= SHARED then
    local checkpoint = checkpoint_of(entry.task.lane)
    alone[checkpoint] = true
    local listed = redis.call('LPOS', alone_key(job, checkpoint), entry.name)
    local shown = head.paused or redis.call('ZSCORE', suspects_key(checkpoint), job)
    if not listed or not shown then
      find('task ' .. entry.name .. ' is queued, but no lease would find it')
      if repair and not listed then make_ready(job, head, entry.name, entry.task) end
      if repair and not shown then show_suspects(job, head, checkpoint) end
    end
  else
    expected[entry.name] = entry.task
  end
end
each_checkpoint(job, function(checkpoint)
  local shown = redis.call('ZSCORE', suspects_key(checkpoint), job)
  if shown and (head.paused or not alone[checkpoint]) then
    find('the job is listed with tasks that run alone, but has none that may start')
    if repair then redis.call('ZREM', suspects_key(checkpoint), job) end
  end
end)
local pictures = {}
for lane in pairs(lanes) do
  pictures[lane] = 0
  for _, name in ipairs(ready_tasks(job, lane)) do
    local task = expected[name]
    if task and task.lane == lane then
      expected[name] = nil
      pictures[lane] = pictures[lane] + task.pictures
    else
      find('task ' .. name .. ' is listed in lane ' .. lane .. ' twice, or is not queued')
      if repair and redis.call('LREM', ready_key(job, lane), -1, name) == 0 then
        redis.call('HDEL', P .. 'job:' .. job, 'h' .. lane)
      end
    end
  end
end
for name, task in pairs(expected) do
  find('task ' .. name .. ' is queued, but no lease would find it')
  if repair then ready_prepend(job, task.lane, name) end
  pictures[task.lane] = pictures[task.lane] + task.pictures
end
for lane in pairs(lanes) do
  local stored = number(redis.call('HGET', P .. 'job:' .. job, 'r' .. lane))
  if stored ~= pictures[lane] then
    find(stored .. ' pictures are counted as ready in lane ' .. lane .. '; its tasks give '
      .. pictures[lane])
    if repair then redis.call('HSET', P .. 'job:' .. job, 'r' .. lane, pictures[lane]) end
  end
  local listed = paged_has(jobs_key(lane, head.class, head.tenant), head.sequence, job)
  local due = ready_count(job, lane) > 0 and not head.paused
  if listed ~= due then
    find('lane ' .. lane .. (due and ' does not list the job, which has ready tasks'
      or ' lists the job, which has nothing to run'))
    if repair and due then activate(job, head, lane) end
    if repair and not due then deactivate(job, head, lane) end
  end
end

-- A job whose tasks have all ended is finalised.
local ended = counted.nd + counted.nf + counted.nc + counted.nx == counted.n
if head.state == 'c' and ended and redis.call('HEXISTS', P .. 'job:' .. job, 'rt') == 0 then
  local lost
  if not finalise then
    lost = 'every task has ended, but the job has no finalise task'
  elseif finalise.task.state == 'q' then
    if not redis.call('LPOS', P .. 'finalise', lease_key(job, finalise.name)) then
      lost = 'the finalise task is queued, but no lease would find it'
    end
  elseif finalise.task.state == 'l' then
    local key = lease_key(job, finalise.name)
    if redis.call('HEXISTS', P .. 'held:' .. finalise.task.session, key) == 0 then
      lost = 'the finalise task is leased, but no session holds it'
    end
  elseif finalise.task.state == 'w' then
    if not redis.call('ZSCORE', P .. 'waiting', lease_key(job, finalise.name)) then
      lost = 'the finalise task waits, but is not due at any time'
    end
  end
  if finalise and (finalise.task.state == 'd' or finalise.task.state == 'f') then
    find('the finalise task has ended, but the job has not')
    if repair then
      head.state = finalise.task.state == 'f' and 'f' or final_state(job)
      redis.call('HSET', P .. 'job:' .. job, 's', head.state)
    end
  end
  if lost then
    find(lost)
    if repair then
      redis.call('HDEL', P .. 'job:' .. job, 'fz')
      finalise_when_ended(job, nil)
    end
  end
end
if alive(head) and head.deadline and not head.late
    and not redis.call('ZSCORE', P .. 'deadlines', job) then
  find('the deadline is not watched')
  if repair then redis.call('ZADD', P .. 'deadlines', head.deadline, job) end
end
if head.state == 'o' and not redis.call('ZSCORE', P .. 'opened', job) then
  find('the job is open, and nothing would end it if its rest did not come')
  if repair then redis.call('ZADD', P .. 'opened', now, job) end
end
if alive(head) then
  local busy = P .. 'busy-lanes:' .. head.tenant
  each_lane(job, function(lane)
    if redis.call('HEXISTS', busy, lane) == 0 then
      find('lane ' .. lane .. ' is not counted as one that its tenant works in')
      if repair then redis.call('HSET', busy, lane, 1) end
    end
  end)
end
return found
