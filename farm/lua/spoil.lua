#!lua flags=allow-oom
-- Some pictures of a done task count as failed, because their files are gone; a retry then makes
-- them again.
--
-- ARGV  job, tenant, task, pictures of it that are still there: fewer than none where files of its
--       earlier generations are gone
--
-- Only the newest generation of a task takes it: a retry is of one generation of each task.
--
-- Returns how many pictures fewer count as done.
local job, name, left = ARGV[1], ARGV[3], tonumber(ARGV[4])
local head, refused = own_job(job, ARGV[2])
if refused then return refused end
if head.state ~= 'd' and head.state ~= 'f' then
  return refuse('CONFLICT', 'job ' .. job .. ' has not ended by itself')
end
if overdue(head) then return refuse('CONFLICT', 'the deadline of job ' .. job .. ' has passed') end
local task = read_task(job, name)
if not task or task.state ~= 'd' then
  return refuse('CONFLICT', 'task ' .. name .. ' of job ' .. job .. ' is not done')
end
local generation, index = string.match(name, '^(%d+)/(%d+)$')
for newer = number(generation) + 1, head.generation do
  if read_record(job, task_name(newer, index or name)) then
    return refuse('CONFLICT', 'task ' .. (index or name) .. ' of job ' .. job
      .. ' ran again since and was not done', 'retry the failed pictures of the job first')
  end
end
local class, text = string.match(task.rest, '^(%d+)|(.*)$')
local receipt = cjson.decode(text)
if left > receipt[1] then
  return refuse('CONFLICT', 'task ' .. name .. ' of job ' .. job .. ' has ' .. receipt[1]
    .. ' pictures')
end
local gone = receipt[1] - left
receipt[1] = left
receipt[2] = task.pictures - left
task.rest = class .. '|' .. cjson.encode(receipt)
write_task(job, name, task)
count(job, {id = -gone, ['if'] = gone})
local failures = P .. 'failures:' .. job
if receipt[2] > 0 and not redis.call('LPOS', failures, name) then
  redis.call('RPUSH', failures, name)
end
return gone
