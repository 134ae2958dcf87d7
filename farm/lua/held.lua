#!lua flags=no-writes
-- with: settle offer
-- What a session holds, with everything a worker needs to start.
--
-- ARGV  session, then the lease keys asked for; all of them if none is named
--
-- Returns as JSON for each what common/offer.lua says. A key that the session does not hold, or whose
-- job was cancelled, is left out.
local session = ARGV[1]
local keys = {}
for at = 2, #ARGV do keys[#keys + 1] = ARGV[at] end
if #keys == 0 then keys = redis.call('HKEYS', P .. 'held:' .. session) end
local found = {}
for _, key in ipairs(keys) do
  local job, name = split_key(key)
  local head = read_job(job)
  local task = head and head.state ~= 'x' and read_task(job, name)
  if task and task.state == 'l' and task.session == session then
    found[#found + 1] = offer(key, job, head, name, task)
  end
end
return #found > 0 and cjson.encode(found) or '[]'
