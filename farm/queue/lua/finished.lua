#!lua flags=no-writes
-- The tasks of a job that have a receipt, in the order they were done.
--
-- requires: prelude, task_record, receipt
--
-- ARGV  job, position to start after, limit
--
-- Returns for each: name, receipt, numerics class.
local job, after = ARGV[1], tonumber(ARGV[2])
local found = {}
for _, name in ipairs(redis.call('LRANGE', P .. 'finished:' .. job, after, after + ARGV[3] - 1)) do
  local task = read_task(job, name)
  found[#found + 1] = {name, unpack_receipt(task)}
end
return found
