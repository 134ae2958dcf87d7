#!lua flags=allow-oom
-- Compares the sessions with what they hold, and repairs what differs.
--
-- requires: prelude, job_record, task_record
--
-- ARGV  1 to repair or 0 to report only
--
-- Returns a line for each finding.
local repair = ARGV[1] == '1'
local found = {}
local function find(text) found[#found + 1] = text end

for _, session in ipairs(redis.call('ZRANGE', P .. 'sessions', 0, -1)) do
  if redis.call('EXISTS', P .. 'session:' .. session) == 0 then
    find('session ' .. session .. ' is listed, but does not exist')
    if repair then redis.call('ZREM', P .. 'sessions', session) end
  end
  for _, key in ipairs(redis.call('HKEYS', P .. 'held:' .. session)) do
    local job, name = split_key(key)
    local head = read_job(job)
    local task = head and read_task(job, name)
    -- Those of a job that was cancelled, and perhaps removed, end with the next heartbeat.
    local lost = head and head.state ~= 'x' and not (task and holds(session, task))
    if lost then
      find('session ' .. session .. ' holds ' .. key .. ', which is not leased to it')
      if repair then redis.call('HDEL', P .. 'held:' .. session, key) end
    end
  end
end
return found
