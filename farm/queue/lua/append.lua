#!lua
-- OPEN -> OPEN, with more tasks, each (none) -> QUEUED
--
-- requires: prelude, job_record, task_record, submission
--
-- ARGV  job, piece, sha256 of the piece, renders rejected in it, tasks
--
-- Returns 1, or 0 if the piece was appended before. Where the queue was filled again from the store,
-- the content of a piece is not known, nor which tasks it had: those that are missing are added.
-- The others are the same, as the store has their content.
if not aof_rewritten() then return refuse('REWRITE', 'the server was restarted') end
local job, piece, sha256 = ARGV[1], ARGV[2], ARGV[3]
local head = read_job(job)
if not head then return refuse('NOTFOUND', 'there is no job ' .. job) end
local known = redis.call('HGET', P .. 'pieces:' .. job, piece)
if known == sha256 then
  redis.call('ZADD', P .. 'opened', 'XX', now, job) -- a client that goes on sends it all again
  return 0
end
if known and known ~= '' then
  return refuse('CONFLICT', 'piece ' .. piece .. ' of job ' .. job
    .. ' was sent before with other content')
end
if head.state == 'x' then return refuse('CANCELLED', 'job ' .. job .. ' was cancelled') end
if head.state ~= 'o' then return refuse('CONFLICT', 'job ' .. job .. ' is closed') end
if overdue(head) then
  return refuse('CONFLICT', 'the deadline of job ' .. job .. ' has passed')
end
local names, tasks, told = {}, {}, cjson.decode(ARGV[5])
for at, task in ipairs(told) do names[at] = task[1] end
local there = read_records(job, names)
for _, task in ipairs(told) do
  if not there[task[1]] then tasks[#tasks + 1] = task end
end
local refused = check_tasks(job, head.tenant, tasks)
if refused then return refused end
redis.call('HSET', P .. 'pieces:' .. job, piece, sha256)
redis.call('ZADD', P .. 'opened', now, job)
if not known then redis.call('HINCRBY', P .. 'job:' .. job, 'pn', 1) end
if tonumber(piece) > number(redis.call('HGET', P .. 'job:' .. job, 'pm')) then
  redis.call('HSET', P .. 'job:' .. job, 'pm', piece)
end
write_tasks(job, tasks, tonumber(ARGV[4]))
return 1
