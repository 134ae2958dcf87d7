#!lua flags=no-writes
-- The tasks of a job that failed as a whole.
--
-- requires: prelude, task_record
--
-- ARGV  job, position to start after, limit
--
-- Returns for each: position, name, pictures, reason. A task that is done with failed pictures is
-- not among them: its manifest part lists those pictures.
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
