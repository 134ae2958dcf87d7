#!lua flags=allow-oom
-- Some pictures of a done task count as failed, because their files are gone; a retry then makes
-- them again.
--
-- ARGV  job, tenant, task, pictures of it that are still there: fewer than none where files of its
--       earlier generations are gone
--
-- The task is the newest of its generations that is done. A retry is of one generation of each task:
-- where a newer one has failed, that is to make these pictures as well.
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
local newest, failed
for newer = number(generation) + 1, head.generation do
  local its_name = task_name(newer, index or name)
  local its = read_task(job, its_name)
  if its and its.state ~= 'f' then
    return refuse('CONFLICT', 'task ' .. name .. ' of job ' .. job .. ' ran again since')
  end
  if its then newest, failed = its_name, its end
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
if failed then
  local pictures = failed.pictures + gone
  failed.cost = math.ceil(failed.cost * pictures / failed.pictures)
  failed.pictures = pictures
  write_task(job, newest, failed)
  return gone
end
local failures = P .. 'failures:' .. job
if receipt[2] > 0 and not redis.call('LPOS', failures, name) then
  redis.call('RPUSH', failures, name)
end
return gone
