#!lua flags=allow-oom
-- Some pictures of a done task count as failed, because their files are gone; a retry then renders
-- them again.
--
-- requires: prelude, job_record, task_record, receipt
--
-- ARGV  job, tenant, task, pictures of it that are still there: negative if files of its earlier
--       generations are gone as well
--
-- The task must be the newest of its generations that is done. A retry runs one generation of each
-- task, so if a newer one has failed, that one has to render these pictures as well.
--
-- Returns by how much the number of done pictures falls.
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
local done = receipt_pictures(task)
if left > done then
  return refuse('CONFLICT', 'task ' .. name .. ' of job ' .. job .. ' has ' .. done .. ' pictures')
end
local gone = done - left
local lost = task.pictures - left
change_receipt(task, left, lost)
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
if lost > 0 and not redis.call('LPOS', failures, name) then
  redis.call('RPUSH', failures, name)
end
return gone
