-- A task's packed record, its name and its lease key.
--
-- requires: prelude, held_record
--
--   task:<job>   hash: task -> packed record; a task is "number", or "generation/number". Most jobs
--                have one task, so the first record lies in the job's own hash: a key costs 100 B
--
-- A record is state|lane|pictures|cost|attempt|crashes|losses|alone|session|rest; zero is written
-- as nothing. Its rest is the receipt of a task that is done (receipt.lua), the reason of one that
-- has failed, and until then the rows that crashed a worker while they ran alone:
-- "row:crashes,row:crashes".

local FINALISE = -1 -- number of the task that finalises its job; its lane is 0

local RECORD = '^(%a)|(%d*)|(%d*)|(%d*)|(%d*)|(%d*)|(%d*)|(%d*)|(%x*)|(.*)$'

local function blank(value)
  if value == 0 then return '' end
  return value
end

local function zero(text)
  if text == '' then return '0' end
  return text
end

local function unpack_task(text)
  local state, lane, pictures, cost, attempt, crashes, losses, alone, session, rest =
    string.match(text, RECORD)
  return {
    state = state, lane = number(lane), pictures = number(pictures), cost = number(cost),
    attempt = number(attempt), crashes = number(crashes), losses = number(losses),
    alone = number(alone), session = session, rest = rest,
  }
end

local function pack_task(task)
  return table.concat({
    task.state, blank(task.lane), blank(task.pictures), blank(task.cost), blank(task.attempt),
    blank(task.crashes), blank(task.losses), blank(task.alone), task.session, task.rest,
  }, '|')
end

local function fresh_task(lane, pictures, cost, alone)
  return {
    state = 'q', lane = lane, pictures = pictures, cost = cost, attempt = 0, crashes = 0,
    losses = 0, alone = alone, session = '', rest = '',
  }
end

-- The record of a fresh task, from texts: submissions write thousands.
local function fresh_record(lane, pictures, cost)
  return 'q|' .. lane .. '|' .. pictures .. '|' .. blank(tonumber(cost)) .. '||||||'
end

-- Starting a task edits its packed record: fields that do not change stay packed, because parsing
-- and formatting numbers is most of the cost of a grant.
local START = '^%a|((%d*)|(%d*)|(%d*))|(%d*)|(%d*|%d*)|(%d*)|%x*|(.*)$'

-- Returns the new record, the session's held record, and the fields of the task that a worker
-- needs, its numbers as texts.
local function start_record(text, session)
  local size, lane, pictures, cost, attempt, blame, alone, rest = string.match(text, START)
  local task = {
    state = 'l', lane = zero(lane), pictures = zero(pictures), cost = zero(cost),
    attempt = attempt == '' and '1' or tostring(attempt + 1), alone = zero(alone), rest = rest,
  }
  local record = 'l|' .. size .. '|' .. task.attempt .. '|' .. blame .. '|' .. alone .. '|'
    .. session .. '|' .. rest
  return record, pack_held(task.attempt, task.alone, task.pictures, 0, 0, ''), task
end

local function task_key(job, name)
  return P .. (name == '0' and 'job:' or 'task:') .. job
end

local function read_record(job, name)
  return redis.call('HGET', task_key(job, name), name)
end

local function read_task(job, name)
  local text = read_record(job, name)
  return text and unpack_task(text)
end

local function write_task(job, name, task)
  redis.call('HSET', task_key(job, name), name, pack_task(task))
end

-- Many at once: name -> packed record, or false if there is none.
local function read_records(job, names)
  local found, rest = {}, {}
  for _, name in ipairs(names) do
    if name == '0' then found['0'] = read_record(job, '0') else rest[#rest + 1] = name end
  end
  if #rest > 0 then
    local records = redis.call('HMGET', P .. 'task:' .. job, unpack(rest))
    for at, name in ipairs(rest) do found[name] = records[at] end
  end
  return found
end

-- Many at once: a flat list of names and packed records.
local function write_records(job, records)
  local rest = {}
  for at = 1, #records, 2 do
    if records[at] == '0' then
      redis.call('HSET', P .. 'job:' .. job, '0', records[at + 1])
    else
      rest[#rest + 1] = records[at]
      rest[#rest + 1] = records[at + 1]
    end
  end
  if #rest > 0 then redis.call('HSET', P .. 'task:' .. job, unpack(rest)) end
end

local function task_name(generation, index)
  if generation == 0 then return tostring(index) end
  return generation .. '/' .. index
end

-- A lease key is "job/generation/number".
local function lease_key(job, name)
  if string.find(name, '/', 1, true) then return job .. '/' .. name end
  return job .. '/0/' .. name
end

local function split_key(key)
  local job, generation, index = string.match(key, '^([^/]+)/(%d+)/(-?%d+)$')
  if generation == '0' then return job, index end
  return job, generation .. '/' .. index
end

-- A task's state as users see it. A job that was cancelled or whose deadline has passed leaves the
-- records of its tasks unchanged, so the job's state overrides theirs.
local function seen_state(head, task)
  local started = task.state == 'l'
  if task.state ~= 'q' and task.state ~= 'w' and not started then return task.state end
  if head.late and not started and task.lane ~= 0 then return 'e' end
  if head.state == 'x' then return 'c' end
  return task.state
end

-- Whether the session holds the task, which is then leased.
local function holds(session, task)
  return task.state == 'l' and task.session == session
end
