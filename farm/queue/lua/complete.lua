#!lua flags=allow-oom
-- LEASED -> DONE for each task that the session still holds.
--
-- requires: prelude, job_record, task_record, held_record, receipt, leases, job_lifecycle,
-- requires: tallies
--
-- ARGV  session, JSON list of {job, task, attempt, pictures done, pictures failed, receipt,
--       numerics class}
--
-- Returns as JSON for each {outcome, the winner's receipt or empty, its numerics class}:
--   committed  the task is done
--   already    it was done before; the receipt is the one that was recorded then
--   cancelled  its job was cancelled, and the task was not this session's
--   stale      the session no longer holds it; it runs elsewhere, will run, or has failed
-- If one receipt does not account for all pictures of its task, nothing is recorded. That of a task
-- whose job was cancelled meanwhile accounts for what was made of it.
local session = ARGV[1]

-- Jobs and tasks are read once, and changes are written once per job, because redis.call dominates
-- the cost.
local jobs, order, entries, keys = {}, {}, {}, {}
for at, told in ipairs(cjson.decode(ARGV[2])) do
  local job, name = told[1], told[2]
  local its = jobs[job]
  if not its then
    its = {head = read_job(job), names = {}, tasks = {}, records = {}, finished = {}, failures = {},
      pictures = 0, done = 0, failed = 0, running_done = 0, running_failed = 0,
      cancelled = 0, row_steps = 0}
    jobs[job] = its
    order[#order + 1] = job
  end
  its.names[#its.names + 1] = name
  keys[at] = lease_key(job, name)
  entries[at] = {
    job = job, its = its, name = name, key = keys[at], attempt = told[3], done = told[4],
    failed = told[5], receipt = told[6], numerics = told[7],
  }
end
for job, its in pairs(jobs) do
  for name, record in pairs(its.head and read_records(job, its.names) or {}) do
    its.tasks[name] = record and unpack_task(record)
  end
end
for _, entry in ipairs(entries) do
  local its, task, told = entry.its, entry.its.tasks[entry.name], entry.done + entry.failed
  local least = its.head and its.head.state == 'x' and 0 or task and task.pictures
  if task and holds(session, task) and task.lane ~= 0
      and (told < least or told > task.pictures) then
    return refuse('INVALID', 'the receipt accounts for ' .. told .. ' pictures; the task has '
      .. task.pictures)
  end
end
local remembered = #keys > 0 and redis.call('HMGET', P .. 'held:' .. session, unpack(keys)) or {}

local committed = {} -- lease keys

local function commit(entry, task, held)
  local its = entry.its
  committed[#committed + 1] = entry.key
  if its.head.state == 'x' then
    its.cancelled = its.cancelled + 1 -- as such it no longer counts as leased or running
  else
    local reported = unpack_held(held)
    its.running_done = its.running_done + reported.done
    its.running_failed = its.running_failed + reported.failed
    its.pictures = its.pictures + task.pictures
  end
  task.state = 'd'
  task.session = ''
  task.rest = pack_receipt(entry.numerics, entry.receipt)
  its.records[#its.records + 1] = entry.name
  its.records[#its.records + 1] = pack_task(task)
  if task.lane == 0 then
    its.finalised = true
    return
  end
  its.finished[#its.finished + 1] = entry.name
  if entry.failed > 0 then its.failures[#its.failures + 1] = entry.name end
  its.done = its.done + entry.done
  its.failed = its.failed + entry.failed
  its.row_steps = its.row_steps + math.ceil(task.cost * entry.done / task.pictures)
end

local function complete(entry, held)
  local its, task = entry.its, entry.its.tasks[entry.name]
  if not task then return {'stale', '', ''} end
  if task.state == 'd' then
    return {'already', unpack_receipt(task)}
  end
  local cancelled = its.head.state == 'x'
  if not holds(session, task) or task.attempt ~= entry.attempt or (cancelled and task.lane == 0) then
    if cancelled then let_go(session, entry.job, entry.name, its.head) end
    return {cancelled and 'cancelled' or 'stale', '', ''}
  end
  commit(entry, task, held)
  return {'committed', '', ''}
end

-- What tenants got in this call.
local got, spent = {}, {}

local function tally_job(its)
  local tenant = its.head.tenant
  tally('failed:row', its.failed)
  got[tenant] = (got[tenant] or 0) + its.done
  spent[tenant] = (spent[tenant] or 0) + its.row_steps
end

local outcomes = {}
for at, entry in ipairs(entries) do outcomes[at] = complete(entry, remembered[at]) end
if #committed > 0 then forget(session, committed) end
for _, job in ipairs(order) do
  local its = jobs[job]
  if #its.records > 0 then write_records(job, its.records) end
  if #its.finished > 0 then
    local tasks = #its.finished
    count(job, {
      nl = its.cancelled - tasks, nc = -its.cancelled, nd = tasks, lp = -its.pictures, id = its.done, ['if'] = its.failed,
      rd = -its.running_done, rf = -its.running_failed,
    })
    redis.call('RPUSH', P .. 'finished:' .. job, unpack(its.finished))
    if #its.failures > 0 then redis.call('RPUSH', P .. 'failures:' .. job, unpack(its.failures)) end
    event(job, 'task')
    tally_job(its)
    finalise_when_ended(job, session)
  end
  if its.finalised then finalise_job(job) end
end
for tenant, pictures in pairs(got) do tally('pictures:' .. tenant, pictures) end
for tenant, row_steps in pairs(spent) do tally('row-steps:' .. tenant, row_steps) end
return cjson.encode(outcomes)
