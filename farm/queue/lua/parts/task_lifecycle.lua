-- What happens to a task whose lease ends without a receipt.
--
-- requires: prelude, job_record, task_record, held_record, crashed_rows, ready_index,
-- requires: job_lifecycle, tallies
--
--   waiting   sorted set: lease key -> when it is ready again (ms)

local MAX_LOSSES = 20 -- of infrastructure
local MOST_SHARED_LOSSES = 3 -- after so many a task may be what kills its workers: it runs alone
local FIRST_WAIT = 500 -- ms, at most; doubles with every attempt that was lost
local LONGEST_WAIT = 60000

-- Terminal, without a receipt. `from` is the counter that the task leaves.
local function fail_task(job, name, task, from, kind, reason)
  task.state = 'f'
  task.session = ''
  task.rest = reason
  write_task(job, name, task)
  if task.lane == 0 then
    end_job(job, 'f', 'could not be finalised: ' .. reason)
    return
  end
  count(job, {[from] = -1, nf = 1, ['if'] = task.pictures})
  tally('failed:' .. kind, task.pictures)
  redis.call('RPUSH', P .. 'failures:' .. job, name)
  event(job, 'task')
end

local function expire_task(job, name, task, from)
  task.state = 'e'
  task.session = ''
  write_task(job, name, task)
  count(job, {[from] = -1, nx = 1, ['if'] = task.pictures, ix = task.pictures})
  tally('failed:expired', task.pictures)
  event(job, 'task')
end

-- LEASED -> QUEUED | WAITING | FAILED | EXPIRED, for a task whose lease has just ended.
--
-- kind   row: final. crash: counts if the task was leased to run row by row, against the row that was
--        running if the worker named one; after a first crash a task runs alone, row by row.
--        infra: the worker was lost; what loses worker after worker runs without neighbours, so
--        that it takes none of them with it. release: the worker returns it unharmed.
-- Returns the letter of the new state.
local function give_back(job, head, name, task, kind, row, reason)
  local counted = task.lane ~= 0
  -- A finalise task renders nothing, so a crash of its worker is not its fault.
  if kind == 'crash' and not counted then kind = 'infra' end
  count(job, {lp = -task.pictures})
  if counted then tally('returned:' .. kind, 1) end
  if kind == 'row' then
    fail_task(job, name, task, 'nl', kind, reason)
    return 'f'
  elseif kind == 'crash' and task.alone == BY_ROW and row ~= '' then
    if not blame_row(task, row) then
      task.crashes = MAX_CRASHES
      fail_task(job, name, task, 'nl', kind,
        'more than ' .. MAX_SKIPPED .. ' of its pictures crashed their worker: ' .. reason)
      return 'f'
    end
  elseif kind == 'crash' and task.alone == BY_ROW then
    task.crashes = task.crashes + 1
    if task.crashes >= MAX_CRASHES then
      fail_task(job, name, task, 'nl', kind,
        'crashed its worker ' .. task.crashes .. ' times while running alone: ' .. reason)
      return 'f'
    end
  elseif kind == 'infra' then
    task.losses = task.losses + 1
    if task.losses >= MAX_LOSSES then
      fail_task(job, name, task, 'nl', kind, 'lost ' .. task.losses .. ' times: ' .. reason)
      return 'f'
    end
    if counted and task.alone == SHARED and task.losses >= MOST_SHARED_LOSSES then
      task.alone = ISOLATED
    end
  end
  if kind == 'crash' then task.alone = BY_ROW end
  if head.late and counted then
    expire_task(job, name, task, 'nl')
    return 'e'
  end
  task.session = ''
  if kind == 'release' then
    task.state = 'q'
    write_task(job, name, task)
    make_ready(job, head, name, task)
    if counted then count(job, {nl = -1, nq = 1}) end
    return 'q'
  end
  task.state = 'w'
  write_task(job, name, task)
  local tries = task.losses + task.crashes
  local wait = math.min(LONGEST_WAIT, FIRST_WAIT * 2 ^ math.max(math.min(tries, 10) - 1, 0))
  redis.call('ZADD', P .. 'waiting', now + math.random(0, wait), lease_key(job, name))
  if counted then count(job, {nl = -1, nw = 1}) end
  return 'w'
end
