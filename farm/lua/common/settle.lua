-- What happens to a task when a session lets go of it, and to a job when its last task ends.
--
--   sessions         sorted set: session -> end of its leases (ms)
--   session:<s>      hash: worker, checkpoints, info, room, seen, stats, command
--   inbox:<s>        list: lease keys that were granted and not fetched yet
--   waiting          sorted set: lease key -> when it is ready again (ms)
--   finalise         list: lease keys of jobs to finalise that nobody holds
--   finished:<job>   list: tasks in the order they were done
--   failures:<job>   list: tasks with failed pictures
--   ended            sorted set: job -> when it ended (ms)
--   retrying         set: jobs with failures that are still to be queued again

local MAX_CRASHES = 2 -- of a task that was leased to run alone: of a row, or of what is in none
local MAX_SKIPPED = 16 -- rows; more of them, and it is not the rows
local MAX_LOSSES = 20 -- of infrastructure
local FIRST_WAIT = 500 -- ms, at most; doubles with every attempt that was lost
local LONGEST_WAIT = 60000

local function hold(session, job, name, record)
  local key = lease_key(job, name)
  local started, held = start_record(record, session)
  redis.call('HSET', P .. 'held:' .. session, key, held)
  redis.call('RPUSH', P .. 'inbox:' .. session, key)
  redis.call('HSET', task_key(job, name), name, started)
end

local function unpack_held(text)
  local attempt, alone, pictures, done, failed, row =
    string.match(text, '^(%d+)|(%d+)|(%d+)|(%d+)|(%d+)|(%d*)$')
  return {
    attempt = tonumber(attempt), alone = tonumber(alone), pictures = tonumber(pictures),
    done = tonumber(done), failed = tonumber(failed), row = row,
  }
end

-- The rows of a task that crashed, with how often, and of them those that are to be left out.
local NONE = {}

local function crashed_rows(task)
  if task.rest == '' then return NONE, NONE end
  local crashes, skipped = {}, {}
  if task.state == 'd' or task.state == 'f' then return crashes, skipped end
  for row, times in string.gmatch(task.rest, '(%d+):(%d+)') do
    crashes[#crashes + 1] = {row = row, times = tonumber(times)}
    if tonumber(times) >= MAX_CRASHES then skipped[#skipped + 1] = tonumber(row) end
  end
  return crashes, skipped
end

-- One more crash of a row. Returns false if the task has too many such rows to go on.
local function blame_row(task, row)
  local crashes = {unpack((crashed_rows(task)))}
  local known
  for _, entry in ipairs(crashes) do
    if entry.row == row then known = entry end
  end
  if not known then
    known = {row = row, times = 0}
    crashes[#crashes + 1] = known
  end
  known.times = known.times + 1
  local texts = {}
  for at, entry in ipairs(crashes) do texts[at] = entry.row .. ':' .. entry.times end
  task.rest = table.concat(texts, ',')
  local _, skipped = crashed_rows(task)
  return #skipped <= MAX_SKIPPED
end

-- A session holds these keys no more.
local function forget(session, keys)
  redis.call('HDEL', P .. 'held:' .. session, unpack(keys))
  local inbox = P .. 'inbox:' .. session
  local unseen = {}
  for _, key in ipairs(redis.call('LRANGE', inbox, 0, -1)) do unseen[key] = true end
  for _, key in ipairs(keys) do
    if unseen[key] then redis.call('LREM', inbox, 1, key) end
  end
end

-- Forgets a lease; what it had reported as rendered so far is no longer counted as running.
-- Returns the row that was running alone, or an empty text.
local function let_go(session, job, name, head)
  local key = lease_key(job, name)
  local text = redis.call('HGET', P .. 'held:' .. session, key)
  if not text then return '' end
  local held = unpack_held(text)
  forget(session, {key})
  if head and (head.state == 'o' or head.state == 'c') then
    count(job, {rd = -held.done, rf = -held.failed})
  end
  return held.row
end

-- What is not queued again by now stays failed.
local function end_retry(job)
  redis.call('HDEL', P .. 'job:' .. job, 'rt', 'rr')
  redis.call('SREM', P .. 'retrying', job)
end

local function end_job(job, state, reason)
  redis.call('HSET', P .. 'job:' .. job, 's', state, 'e', now)
  if reason then redis.call('HSET', P .. 'job:' .. job, 'r', reason) end
  redis.call('ZADD', P .. 'ended', now, job)
  redis.call('ZREM', P .. 'deadlines', job)
  end_retry(job)
  redis.call('DEL', P .. 'pieces:' .. job)
  -- The chunks' texts are of use for a retry only.
  if state ~= 'f' and redis.call('EXISTS', P .. 'failures:' .. job) == 0 then
    redis.call('UNLINK', P .. 'text:' .. job)
  end
  event(job, ({d = 'done', f = 'failed', x = 'cancelled'})[state])
end

-- A job whose last task has ended is done, or failed where too many pictures were.
local function finalise_job(job)
  local h = redis.call('HMGET', P .. 'job:' .. job, 'if', 'i', 'o')
  local allowed = cjson.decode(h[3]).max_failed or 0
  if number(h[1]) > allowed then
    end_job(job, 'f', h[1] .. ' of ' .. h[2] .. ' pictures failed; at most ' .. allowed
      .. ' were allowed')
  else
    end_job(job, 'd')
  end
end

-- Queues the task that finalises the job once everything else has ended. The session that ended
-- the last task gets it, where there is one that takes work.
local function settle_job(job, session)
  local h = redis.call('HMGET', P .. 'job:' .. job,
    's', 'n', 'nd', 'nf', 'nc', 'nx', 'g', 'fz', 'rt')
  if h[1] ~= 'c' or h[9] then return end
  local ended = number(h[3]) + number(h[4]) + number(h[5]) + number(h[6])
  if number(h[2]) ~= ended or h[8] == tostring(number(h[7])) then return end
  local name = task_name(number(h[7]), FINALISE)
  local task = {
    state = 'q', lane = 0, pictures = 0, cost = 0, attempt = 0, crashes = 0, losses = 0,
    alone = 0, session = '', rest = '',
  }
  redis.call('HSET', P .. 'job:' .. job, 'fz', number(h[7]))
  local takes = session and redis.call('EXISTS', P .. 'session:' .. session) == 1
    and not redis.call('HGET', P .. 'session:' .. session, 'command')
  if takes then
    hold(session, job, name, pack_task(task))
  else
    write_task(job, name, task)
    redis.call('RPUSH', P .. 'finalise', lease_key(job, name))
  end
end

-- Terminal, without a receipt. `from` is the counter the task leaves.
local function fail_task(job, name, task, from, reason)
  task.state = 'f'
  task.session = ''
  task.rest = reason
  write_task(job, name, task)
  if task.lane == 0 then
    end_job(job, 'f', 'could not be finalised: ' .. reason)
    return
  end
  count(job, {[from] = -1, nf = 1, ['if'] = task.pictures})
  redis.call('RPUSH', P .. 'failures:' .. job, name)
  event(job, 'task')
end

local function expire_task(job, name, task, from)
  task.state = 'e'
  task.session = ''
  write_task(job, name, task)
  count(job, {[from] = -1, nx = 1, ['if'] = task.pictures})
  event(job, 'task')
end

-- LEASED -> QUEUED | WAITING | FAILED | EXPIRED, for a task whose lease has just ended.
--
-- kind   row: final. crash: counts if the task was leased alone, as one is after its first crash,
--        against the row that was running if the worker said which; else it will run alone.
--        infra: the task is not to blame. release: the worker gives it back unharmed.
-- Returns the letter of the new state.
local function give_back(job, head, name, task, kind, row, reason)
  local counted = task.lane ~= 0
  -- To finalise a job renders nothing: its worker's crash is none of its doing.
  if kind == 'crash' and not counted then kind = 'infra' end
  count(job, {lp = -task.pictures})
  if kind == 'row' then
    fail_task(job, name, task, 'nl', reason)
    return 'f'
  elseif kind == 'crash' and task.alone == 1 and row ~= '' then
    if not blame_row(task, row) then
      task.crashes = MAX_CRASHES
      fail_task(job, name, task, 'nl',
        'more than ' .. MAX_SKIPPED .. ' of its pictures crashed their worker: ' .. reason)
      return 'f'
    end
  elseif kind == 'crash' and task.alone == 1 then
    task.crashes = task.crashes + 1
    if task.crashes >= MAX_CRASHES then
      fail_task(job, name, task, 'nl',
        'crashed its worker ' .. task.crashes .. ' times while running alone: ' .. reason)
      return 'f'
    end
  elseif kind == 'infra' then
    task.losses = task.losses + 1
    if task.losses >= MAX_LOSSES then
      fail_task(job, name, task, 'nl', 'lost ' .. task.losses .. ' times: ' .. reason)
      return 'f'
    end
  end
  if kind == 'crash' then task.alone = 1 end
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

-- A session's life ends; everything it holds goes back. Returns how many tasks that were.
local function end_session(session, why)
  local held = redis.call('HGETALL', P .. 'held:' .. session)
  redis.call('DEL', P .. 'inbox:' .. session)
  local kind = ({crash = 'crash', drain = 'release', lost = 'infra'})[why]
  for at = 1, #held, 2 do
    local job, name = split_key(held[at])
    local head = read_job(job)
    local row = let_go(session, job, name, head)
    local task = head and read_task(job, name)
    if task and head.state ~= 'x' and task.state == 'l' and task.session == session then
      give_back(job, head, name, task, kind, row, 'the worker ended (' .. why .. ')')
      settle_job(job, nil)
    end
  end
  redis.call('DEL', P .. 'session:' .. session, P .. 'held:' .. session)
  redis.call('ZREM', P .. 'sessions', session)
  redis.call('SREM', P .. 'draining', session)
  return #held / 2
end

-- QUEUED and WAITING -> EXPIRED for all of a job's tasks; those in a session's hands go on. Their
-- records are left as they are: what the job says overrides them.
local function expire_job(job, head)
  if head.late or (head.state ~= 'o' and head.state ~= 'c') then return end
  drop_ready(job, head)
  head.late = true
  local h = redis.call('HMGET', P .. 'job:' .. job, 'nq', 'nw', 'i', 'id', 'if', 'lp')
  local tasks = number(h[1]) + number(h[2])
  local pictures = number(h[3]) - number(h[4]) - number(h[5]) - number(h[6])
  redis.call('HSET', P .. 'job:' .. job, 'dx', 1)
  end_retry(job)
  count(job, {nq = -number(h[1]), nw = -number(h[2]), nx = tasks, ['if'] = pictures})
  redis.call('ZREM', P .. 'deadlines', job)
  event(job, 'task')
  settle_job(job, nil)
end

-- Why a task has failed pictures: `row`, of themselves; `crash`, of their worker; or `infra`.
local function failed_by(task)
  if task.state == 'd' then return 'row' end
  if task.losses >= MAX_LOSSES then return 'infra' end
  return task.crashes >= MAX_CRASHES and 'crash' or 'row'
end

-- A reason is one of these words, or what the reason of a task that has failed contains.
local function failed_for(task, reason)
  return not reason or failed_by(task) == reason
    or (task.state == 'f' and string.find(task.rest, reason, 1, true) ~= nil)
end

-- Some of the tasks with failed pictures are queued again, as the job's present generation; what
-- they did before stays as it is. `rt` of them were there when the retry was asked for: what fails
-- while they are queued lies behind them, and so does what has failed for another reason.
local RETRIED = 200 -- tasks

local function retry_some(job, head)
  local list = P .. 'failures:' .. job
  local asked = redis.call('HMGET', P .. 'job:' .. job, 'rt', 'rr')
  local due = number(asked[1])
  local names = redis.call('LPOP', list, math.min(RETRIED, due)) or {}
  local pictures, tasks = 0, 0
  for _, name in ipairs(names) do
    local task = read_task(job, name)
    if failed_for(task, asked[2]) then
      local failed = task.pictures
      if task.state == 'd' then
        failed = cjson.decode(string.match(task.rest, '^%d+|(.*)$'))[2]
      end
      local fresh = {
        state = 'q', lane = task.lane, pictures = failed,
        cost = math.ceil(task.cost * failed / task.pictures), attempt = 0, crashes = 0, losses = 0,
        alone = task.alone, session = '', rest = '',
      }
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
    settle_job(job, nil)
  end
end
