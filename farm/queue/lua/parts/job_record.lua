-- A job's header and counters.
--
-- requires: prelude, interning
--
--   job:<job>    hash; the field names are short because there are millions of jobs:
--     s state: (o)pen, (c)losed, (d)one, (f)ailed, x cancelled     r reason   ps paused
--     t tenant   p class   q sequence   o options   fp fingerprint   ik idempotency key
--     c created  b begun   e ended   dl deadline   dx deadline has passed   (all ms)
--     pn pieces  pm highest piece   cl pieces at close   rj renders rejected
--     n tasks, of them nq queued, nl leased, nw waiting, nd done, nf failed, nc cancelled,
--       nx expired   g generation   fz generation whose finalise task exists
--     k row-steps   i pictures, of them id done, if failed, ix of these expired,
--       lp leased   rd, rf reported while running
--     rt failures that are still to be queued again   rr for which reason   ln lanes
--     r<lane> pictures ready in a lane
--     h<lane> the ready task of a lane that runs next   0 the record of the first task
--   events       stream: what happened to which job

-- state, tenant, class, sequence, deadline passed, paused, generation, deadline, begun, created
local function read_job(job)
  local h = redis.call('HMGET', P .. 'job:' .. job,
    's', 't', 'p', 'q', 'dx', 'ps', 'g', 'dl', 'b', 'c')
  if not h[1] then return nil end
  return {
    state = h[1], tenant = h[2], class = tonumber(h[3]), sequence = tonumber(h[4]),
    late = h[5] and true or false, paused = h[6] and true or false, generation = number(h[7]),
    deadline = tonumber(h[8]), begun = h[9] and true or false, created = number(h[10]),
  }
end

-- The job if it belongs to the tenant, otherwise nil and an error.
local function own_job(job, tenant)
  local head = read_job(job)
  if head and head.tenant == tenant_number(tenant) then return head end
  return nil, refuse('NOTFOUND', 'there is no job ' .. job)
end

-- Whether tasks of the job may still run.
local function alive(head)
  return head.state == 'o' or head.state == 'c'
end

-- Whether the job's deadline has passed. `late` is set only when its tasks are counted as expired,
-- which does not happen to a job that has ended.
local function overdue(head)
  return head.late or (head.deadline ~= nil and head.deadline <= now)
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
