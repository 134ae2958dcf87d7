#!lua flags=no-writes
-- with: settle
-- What a session holds, with everything a worker needs to start.
--
-- ARGV  session, then the lease keys asked for; all of them if none is named
--
-- Returns for each: key, attempt, lane's text, pictures, cost, class, alone, chunk as JSON. A key
-- that the session does not hold, or whose job was cancelled, is left out.
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
    local lane = task.lane == 0 and '' or redis.call('HGET', P .. 'lane:texts', task.lane)
    local text = redis.call('HGET', P .. 'text:' .. job, string.match(name, '-?%d+$')) or ''
    found[#found + 1] = {
      key, task.attempt, lane, task.pictures, task.cost, head.class, task.alone, text,
    }
  end
end
return found
