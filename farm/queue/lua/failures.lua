#!lua flags=no-writes
-- The tasks of a job that failed as a whole.
--
-- requires: prelude, task_record
--
-- ARGV  job, position to start after, limit
--
-- Returns the position up to which it has looked, 0 at the end of the list, then for each: position,
-- name, pictures, reason. A task that is done with failed pictures is not among them: its manifest
-- part lists those pictures. Where there are very many of these, a call may find nothing before the
-- end.
local SEARCHED = 1000

local job, after, limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local names = redis.call('LRANGE', P .. 'failures:' .. job, after, after + SEARCHED - 1)
local records = read_records(job, names)
local found = {#names == SEARCHED and after + SEARCHED or 0}
for at, name in ipairs(names) do
  local task = unpack_task(records[name])
  if task.state == 'f' then
    found[#found + 1] = {after + at, name, task.pictures, task.rest}
    if #found > limit then
      found[1] = after + at
      break
    end
  end
end
return found
