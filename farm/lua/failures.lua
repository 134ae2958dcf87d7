#!lua flags=no-writes
-- ARGV  job, position to start after, limit
--
-- Returns for each task that ran out of attempts: position, name, pictures, reason. Tasks that are
-- done with failed pictures tell of them in their manifest part.
local job, after = ARGV[1], tonumber(ARGV[2])
local found = {}
local names = redis.call('LRANGE', P .. 'failures:' .. job, after, after + ARGV[3] - 1)
for at, name in ipairs(names) do
  local task = read_task(job, name)
  if task.state == 'f' then
    found[#found + 1] = {after + at, name, task.pictures, task.rest}
  end
end
return found
