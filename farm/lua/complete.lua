#!lua flags=allow-oom
-- with: paged ready settle
-- LEASED -> DONE for each task that the session still holds.
--
-- ARGV  session, then for each task: job, task, attempt, pictures done, pictures failed, receipt,
--       numerics class
--
-- Returns for each {outcome, winner's receipt or empty, its numerics class}:
--   committed  the task is done
--   already    it was done before; the receipt is the winner's, which is kept
--   cancelled  its job was cancelled
--   stale      the session does not hold it any more; it runs elsewhere, will, or has failed
-- Nothing is recorded if one receipt does not tell of as many pictures as its task has.
local ARGUMENTS = 7
local session = ARGV[1]

-- Jobs and tasks are read once, and what is done is written once a job, since each call costs as
-- much as a line of Lua costs little.
local jobs, order, entries = {}, {}, {}
for at = 2, #ARGV, ARGUMENTS do
  local job, name = ARGV[at], ARGV[at + 1]
  local its = jobs[job]
  if not its then
    its = {head = read_job(job), tasks = {}, records = {}, finished = {}, failures = {},
      pictures = 0, done = 0, failed = 0}
    jobs[job] = its
    order[#order + 1] = job
  end
  local task = its.head and (its.tasks[name] or read_task(job, name))
  its.tasks[name] = task
  local entry = {
    job = job, its = its, name = name, task = task, attempt = tonumber(ARGV[at + 2]),
    done = tonumber(ARGV[at + 3]), failed = tonumber(ARGV[at + 4]), receipt = ARGV[at + 5],
    numerics = ARGV[at + 6],
  }
  entries[#entries + 1] = entry
  local told = entry.done + entry.failed
  if task and task.state == 'l' and task.session == session and its.head.state ~= 'x'
      and task.lane ~= 0 and told ~= task.pictures then
    return refuse('INVALID', 'the receipt tells of ' .. told .. ' pictures; the task has '
      .. task.pictures)
  end
end

local function commit(entry)
  local its, task = entry.its, entry.task
  let_go(session, entry.job, entry.name, its.head)
  task.state = 'd'
  task.session = ''
  task.rest = intern('numerics', entry.numerics) .. '|' .. entry.receipt
  its.records[#its.records + 1] = entry.name
  its.records[#its.records + 1] = pack_task(task)
  if task.lane == 0 then
    its.finalised = true
    return
  end
  its.finished[#its.finished + 1] = entry.name
  if entry.failed > 0 then its.failures[#its.failures + 1] = entry.name end
  its.pictures = its.pictures + task.pictures
  its.done = its.done + entry.done
  its.failed = its.failed + entry.failed
end

local function complete(entry)
  local its, task = entry.its, entry.task
  if not task then return {'stale', '', ''} end
  if task.state == 'd' then
    local class, receipt = string.match(task.rest, '^(%d+)|(.*)$')
    return {'already', receipt, redis.call('HGET', P .. 'numerics:texts', class)}
  end
  if its.head.state == 'x' then
    let_go(session, entry.job, entry.name, its.head)
    return {'cancelled', '', ''}
  end
  if task.state ~= 'l' or task.session ~= session or task.attempt ~= entry.attempt then
    return {'stale', '', ''}
  end
  commit(entry)
  return {'committed', '', ''}
end

local function finalise(job)
  local h = redis.call('HMGET', P .. 'job:' .. job, 'if', 'i', 'o')
  local allowed = cjson.decode(h[3]).max_failed or 0
  if number(h[1]) > allowed then
    end_job(job, 'f', h[1] .. ' of ' .. h[2] .. ' pictures failed; at most ' .. allowed
      .. ' were allowed')
  else
    end_job(job, 'd')
  end
end

local outcomes = {}
for at, entry in ipairs(entries) do outcomes[at] = complete(entry) end
for _, job in ipairs(order) do
  local its = jobs[job]
  if #its.records > 0 then write_records(job, its.records) end
  if #its.finished > 0 then
    local tasks = #its.finished
    count(job, {
      nl = -tasks, nd = tasks, lp = -its.pictures, id = its.done, ['if'] = its.failed,
    })
    redis.call('RPUSH', P .. 'finished:' .. job, unpack(its.finished))
    if #its.failures > 0 then redis.call('RPUSH', P .. 'failures:' .. job, unpack(its.failures)) end
    event(job, 'task')
    settle_job(job, session)
  end
  if its.finalised then finalise(job) end
end
return outcomes
