-- How failed pictures are queued again.
--
-- requires: constants, prelude, job_record, task_record, receipt, crashed_rows, ready_index,
-- requires: job_lifecycle, task_lifecycle

-- Why a task has failed pictures: `row` if it was the pictures themselves, `crash` if they crashed
-- their worker, `infra` if it was lost too often.
local function failed_by(task)
  if task.state == 'd' then return 'row' end
  if task.losses >= MAX_LOSSES then return 'infra' end
  return task.crashes >= MAX_CRASHES and 'crash' or 'row'
end

-- A reason is one of these words, or a part of the reason that a failed task gives.
local function failed_for(task, reason)
  return not reason or failed_by(task) == reason
    or (task.state == 'f' and string.find(task.rest, reason, 1, true) ~= nil)
end

-- Queues some of the tasks with failed pictures again, as tasks of the job's present generation;
-- the old tasks stay as they are. Only the first `rt` failures belong to the retry: later ones, and
-- those that failed for another reason, are behind them in the list.
local function retry_some(job, head)
  local list = P .. 'failures:' .. job
  local asked = redis.call('HMGET', P .. 'job:' .. job, 'rt', 'rr')
  local due = number(asked[1])
  local names = redis.call('LPOP', list, math.min(MAX_ROWS, due)) or {}
  local pictures, tasks = 0, 0
  for _, name in ipairs(names) do
    local task = read_task(job, name)
    if failed_for(task, asked[2]) then
      local failed = task.pictures
      if task.state == 'd' then failed = select(2, receipt_pictures(task)) end
      local cost = math.ceil(task.cost * failed / task.pictures)
      local fresh = fresh_task(task.lane, failed, cost, task.alone)
      local renamed = task_name(head.generation, string.match(name, '%d+$'))
      write_task(job, renamed, fresh)
      make_ready(job, head, renamed, fresh)
      pictures = pictures + failed
      tasks = tasks + 1
    else
      redis.call('RPUSH', list, name)
    end
  end
  count(job, {n = tasks, nq = tasks, ['if'] = -pictures})
  if due > #names then
    redis.call('HSET', P .. 'job:' .. job, 'rt', due - #names)
  else
    end_retry(job)
    finalise_when_ended(job, nil)
  end
end
