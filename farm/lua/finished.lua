#!lua flags=no-writes
-- ARGV  job, position to start after, limit
--
-- Returns for each task with a receipt, in the order they were done: name, receipt, numerics class.
local job, after = ARGV[1], tonumber(ARGV[2])
local found = {}
for _, name in ipairs(redis.call('LRANGE', P .. 'finished:' .. job, after, after + ARGV[3] - 1)) do
  local task = read_task(job, name)
  local class, receipt = string.match(task.rest, '^(%d+)|(.*)$')
  found[#found + 1] = {name, receipt, redis.call('HGET', P .. 'numerics:texts', class)}
end
return found
