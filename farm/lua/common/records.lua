-- Prelude of every script: the clock, the packed records, the errors.
--
-- Every key starts with KEYS[1], which carries the farm's hash tag:
--   job:<job>    hash: header and counters of a job; short names keep it small
--     s state: (o)pen, (c)losed, (d)one, (f)ailed, x cancelled     r reason   ps paused
--     t tenant   p class   q sequence   o options   fp fingerprint   ik idempotency key
--     c created  b begun   e ended   dl deadline   dx deadline has passed   (all ms)
--     pn pieces  pm highest piece   cl pieces at close   rj renders rejected
--     n tasks, of them nq queued, nl leased, nw waiting, nd done, nf failed, nc cancelled,
--       nx expired   g generation   fz generation whose finalise task exists
--     i pictures, of them id done, if failed, lp leased   rd, rf reported while running
--     rt failures that are still to be queued again   rr for which reason   ln lanes
--     r<lane> pictures ready in a lane
--     h<lane> the ready task of a lane that runs next   0 the record of the first task
--   task:<job>   hash: task -> packed record; a task is "number", or "generation/number". Most jobs
--                are one task, so the first lies in the job's own hash: a key costs 100 B
--   text:<job>   hash: number -> chunk as JSON, of small jobs only
--   held:<session>  hash: "job/generation/number" -> attempt|alone|pictures|done|failed|row

local P = KEYS[1]

local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000), tonumber(time[2])
end

local now, microsecond = clock()
math.randomseed(now % 1000003 * 1000 + microsecond % 1000)

local URGENT, NORMAL, BULK = 0, 1, 2
local FINALISE = -1 -- number of the task that finalises its job; its lane is 0

local function refuse(kind, message, hint)
  if hint then message = message .. ' | ' .. hint end
  return redis.error_reply(kind .. ' ' .. message)
end

local function number(text)
  return tonumber(text) or 0
end

local function blank(value)
  if value == 0 then return '' end
  return value
end

local function zero(text)
  if text == '' then return '0' end
  return text
end

-- state|lane|pictures|cost|attempt|crashes|losses|alone|session|rest; zero is empty
--
-- rest is the receipt of a task that is done, the reason of one that has failed, and until then the
-- rows that crashed a worker while they ran alone: "row:crashes,row:crashes"
local RECORD = '^(%a)|(%d*)|(%d*)|(%d*)|(%d*)|(%d*)|(%d*)|(%d*)|(%x*)|(.*)$'

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

-- Of a task that was never started.
local function fresh_record(lane, pictures, cost)
  return 'q|' .. lane .. '|' .. pictures .. '|' .. blank(tonumber(cost)) .. '||||||'
end

-- The start of a task, from record to record: what does not change is not taken apart, since numbers
-- that are read and written again are most of what a grant costs.
local START = '^%a|((%d*)|(%d*)|(%d*))|(%d*)|(%d*|%d*)|(%d*)|%x*|(.*)$'

-- Returns the new record, what the session is to remember of it, and the task as far as a worker
-- needs it, its numbers as texts.
local function start_record(text, session)
  local size, lane, pictures, cost, attempt, blame, alone, rest = string.match(text, START)
  local task = {
    state = 'l', lane = zero(lane), pictures = zero(pictures), cost = zero(cost),
    attempt = attempt == '' and '1' or tostring(attempt + 1), alone = zero(alone), rest = rest,
  }
  local record = 'l|' .. size .. '|' .. task.attempt .. '|' .. blame .. '|' .. alone .. '|'
    .. session .. '|' .. rest
  local held = task.attempt .. '|' .. task.alone .. '|' .. task.pictures .. '|0|0|'
  return record, held, task
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

-- Many at once: name -> packed record, or false where there is none.
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

-- Many at once: for each its name and its packed record.
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

local function lease_key(job, name)
  if string.find(name, '/', 1, true) then return job .. '/' .. name end
  return job .. '/0/' .. name
end

local function split_key(key)
  local job, generation, index = string.match(key, '^([^/]+)/(%d+)/(-?%d+)$')
  if generation == '0' then return job, index end
  return job, generation .. '/' .. index
end

local function task_name(generation, index)
  if generation == 0 then return tostring(index) end
  return generation .. '/' .. index
end

local function tenant_number(text)
  return redis.call('HGET', P .. 'tenant:numbers', text)
end

-- state, tenant, class, sequence, deadline passed, paused, generation, deadline, begun
local function read_job(job)
  local h = redis.call('HMGET', P .. 'job:' .. job, 's', 't', 'p', 'q', 'dx', 'ps', 'g', 'dl', 'b')
  if not h[1] then return nil end
  return {
    state = h[1], tenant = h[2], class = tonumber(h[3]), sequence = tonumber(h[4]),
    late = h[5] and true or false, paused = h[6] and true or false, generation = number(h[7]),
    deadline = tonumber(h[8]), begun = h[9] and true or false,
  }
end

-- Whether the job's deadline has passed; `late` says so only once its tasks are counted as expired,
-- and nobody counts while the job has ended.
local function overdue(head)
  return head.late or (head.deadline ~= nil and head.deadline <= now)
end

-- A task's state as users see it: a job that was cancelled or whose deadline has passed leaves the
-- records of its tasks as they were.
local function seen_state(head, task)
  local started = task.state == 'l'
  if task.state ~= 'q' and task.state ~= 'w' and not started then return task.state end
  if head.late and not started and task.lane ~= 0 then return 'e' end
  if head.state == 'x' then return 'c' end
  return task.state
end

-- The job, if it is the tenant's; else an error.
local function own_job(job, tenant)
  local head = read_job(job)
  if head and head.tenant == tenant_number(tenant) then return head end
  return nil, refuse('NOTFOUND', 'there is no job ' .. job)
end

local function count(job, changes)
  local fields = {}
  for field, by in pairs(changes) do
    if by ~= 0 then fields[#fields + 1] = field end
  end
  if #fields == 0 then return end
  if #fields == 1 then
    redis.call('HINCRBY', P .. 'job:' .. job, fields[1], changes[fields[1]])
    return
  end
  local values = redis.call('HMGET', P .. 'job:' .. job, unpack(fields))
  local entries = {}
  for at, field in ipairs(fields) do
    entries[2 * at - 1] = field
    entries[2 * at] = number(values[at]) + changes[field]
  end
  redis.call('HSET', P .. 'job:' .. job, unpack(entries))
end

local function event(job, kind)
  redis.call('XADD', P .. 'events', 'MAXLEN', '~', 10000, '*', 'job', job, 'kind', kind)
end

-- A small number for a text, so that user text is never a part of a key.
local function intern(what, text)
  local found = redis.call('HGET', P .. what .. ':numbers', text)
  if found then return tonumber(found) end
  local fresh = redis.call('HINCRBY', P .. 'counters', what, 1)
  redis.call('HSET', P .. what .. ':numbers', text, fresh)
  redis.call('HSET', P .. what .. ':texts', fresh, text)
  return fresh
end

local function intern_lane(text)
  local found = redis.call('HGET', P .. 'lane:numbers', text)
  if found then return tonumber(found) end
  local fresh = intern('lane', text)
  local checkpoint = intern('checkpoint', string.match(text, '^(.*)/[^/]+/[^/]+$'))
  redis.call('HSET', P .. 'lane:checkpoints', fresh, checkpoint)
  return fresh
end
