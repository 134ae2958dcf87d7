#!lua flags=no-writes
-- What a session holds, with everything a worker needs to start.
--
-- requires: prelude, job_record, task_record, lease_payload
--
-- ARGV  session, then the lease keys asked for; none for all of them
--
-- Returns as JSON a list of what parts/lease_payload.lua returns for each. A key that the session
-- does not hold, or whose job was cancelled, is left out.
local session = ARGV[1]
local keys = {}
for at = 2, #ARGV do keys[#keys + 1] = ARGV[at] end
if #keys == 0 then keys = redis.call('HKEYS', P .. 'held:' .. session) end
local found = {}
for _, key in ipairs(keys) do
  local job, name = split_key(key)
  local head = read_job(job)
  local task = head and head.state ~= 'x' and read_task(job, name)
  if task and holds(session, task) then
    found[#found + 1] = lease_payload(key, job, head, name, task)
  end
end
return #found > 0 and cjson.encode(found) or '[]'
