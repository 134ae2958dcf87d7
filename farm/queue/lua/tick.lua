#!lua flags=allow-oom
-- What is due by the clock: WAITING -> QUEUED, QUEUED and WAITING -> EXPIRED, sessions without a
-- heartbeat end, jobs that are left open are cancelled, jobs past their retention are forgotten,
-- and those that were to be kept for a time are removed after it.
--
-- requires: constants, prelude, job_record, task_record, ready_index, job_lifecycle,
-- requires: task_lifecycle, session_lifecycle, retries, job_removal
--
--   ticked   string: when this last ran; ten times a second is enough, however many processes call
--   server   hash: run_id: of the server that this last ran on; retention: of ended jobs (ms);
--            patience: how long an open job waits for its next piece (ms)
--
-- Returns 1 if it ran.
local EXPIRED, ENDED, FORGOTTEN = 20, 8, 20 -- at most in one run
local PAUSE = 100 -- ms
local LEAST_GAP = 500 -- ms between two runs, half of the shortest lease
local HOUR = 3600000

local last = tonumber(redis.call('GET', P .. 'ticked') or 0)
if now >= last and now - last < PAUSE then return 0 end
redis.call('SET', P .. 'ticked', now)

-- The server's clock was set back: a lease counts from now at most.
if now < last then
  for _, session in ipairs(redis.call('ZRANGE', P .. 'sessions', 0, -1)) do
    local ahead = number(redis.call('HGET', P .. 'session:' .. session, 'seen')) - now
    if ahead > 0 then
      redis.call('HINCRBY', P .. 'session:' .. session, 'seen', -ahead)
      redis.call('ZINCRBY', P .. 'sessions', -ahead, session)
    end
  end
end

local settings = redis.call('HMGET', P .. 'server', 'retention', 'patience')
local retention = tonumber(settings[1]) or RETENTION
local patience = tonumber(settings[2]) or PATIENCE

local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local before = redis.call('HGET', P .. 'server', 'run_id')
local restarted = before and before ~= run_id
if before ~= run_id then redis.call('HSET', P .. 'server', 'run_id', run_id) end

-- No worker could send a heartbeat while the server was away, or while everything stood still as on a
-- machine that slept; nor did one know that the clock was to be set ahead. So each session gets one
-- more lease: only one, where it was silent before, because it may be that nobody called this.
local gap = last > 0 and now - last or 0
if restarted or gap > LEAST_GAP then
  local ends = redis.call('ZRANGE', P .. 'sessions', 0, -1, 'WITHSCORES')
  for at = 1, #ends, 2 do
    local told = redis.call('HMGET', P .. 'session:' .. ends[at], 'lease', 'seen')
    -- One of an earlier version has not told how long its lease is.
    local lease = tonumber(told[1]) or ends[at + 1] - number(told[2])
    local silent = last - number(told[2])
    if restarted or (gap > lease / 2 and silent < lease / 2) then
      redis.call('ZADD', P .. 'sessions', 'GT', now + lease, ends[at])
    end
  end
end

local dropped = 0 -- lanes
for _, job in ipairs(redis.call('ZRANGE', P .. 'deadlines', '-inf', now, 'BYSCORE',
    'LIMIT', 0, EXPIRED)) do
  if dropped > MAX_DROPPED then break end
  local head = read_job(job)
  redis.call('ZREM', P .. 'deadlines', job)
  if head then dropped = dropped + expire_job(job, head) end
end

for _, job in ipairs(redis.call('ZRANGE', P .. 'opened', '-inf', now - patience, 'BYSCORE',
    'LIMIT', 0, EXPIRED)) do
  if dropped > MAX_DROPPED then break end
  redis.call('ZREM', P .. 'opened', job)
  local head = read_job(job)
  if head and head.state == 'o' then
    dropped = dropped + cancel_job(job, head,
      'it was left open: its rest did not come for ' .. patience / HOUR .. ' hours')
  end
end

-- A wait that ends later than the longest one began before the clock was set back.
local waiting = redis.call('ZRANGE', P .. 'waiting', '-inf', now, 'BYSCORE', 'LIMIT', 0, MAX_ROWS)
for _, key in ipairs(redis.call('ZRANGE', P .. 'waiting', '(' .. now + LONGEST_WAIT, 'inf', 'BYSCORE',
    'LIMIT', 0, MAX_ROWS)) do
  waiting[#waiting + 1] = key
end
for _, key in ipairs(waiting) do
  redis.call('ZREM', P .. 'waiting', key)
  local job, name = split_key(key)
  local head = read_job(job)
  local task = head and read_task(job, name)
  local due = task and task.state == 'w' and alive(head)
  if due and (task.lane == 0 or not head.late) then
    task.state = 'q'
    write_task(job, name, task)
    make_ready(job, head, name, task)
    if task.lane ~= 0 then count(job, {nw = -1, nq = 1}) end
  end
end

local retrying = redis.call('SRANDMEMBER', P .. 'retrying')
if retrying then retry_some(retrying, read_job(retrying)) end

for _, session in ipairs(redis.call('ZRANGE', P .. 'sessions', '-inf', now, 'BYSCORE',
    'LIMIT', 0, ENDED)) do
  end_session(session, 'lost')
end

local forgotten = 0 -- lanes
for _, entry in ipairs(redis.call('ZRANGE', P .. 'keeping', '-inf', now, 'BYSCORE',
    'LIMIT', 0, FORGOTTEN)) do
  if forgotten > MAX_DROPPED then break end
  local job, tenant = string.match(entry, '^(.*)/(%d+)$')
  forgotten = forgotten + remove_job(job, tenant)
end
for _, job in ipairs(redis.call('ZRANGE', P .. 'ended', '-inf', now - retention, 'BYSCORE',
    'LIMIT', 0, FORGOTTEN)) do
  if forgotten > MAX_DROPPED then break end
  forgotten = forgotten + forget_job(job)
end
return 1
