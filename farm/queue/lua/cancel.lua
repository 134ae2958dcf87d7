#!lua flags=allow-oom
-- OPEN, QUEUED or RUNNING -> CANCELLED, at once, however many tasks there are.
--
-- requires: prelude, job_record, ready_index, job_lifecycle
--
-- ARGV  job, tenant
--
-- The records of the tasks stay unchanged: the job's state overrides theirs. Workers learn of it
-- from their next heartbeat. Returns the letter of the job's state; one that has ended keeps it.
local job = ARGV[1]
local head, refused = own_job(job, ARGV[2])
if refused then return refused end
if not alive(head) then return head.state end
drop_ready(job, head)
local h = redis.call('HMGET', P .. 'job:' .. job, 'nq', 'nl', 'nw')
local tasks = number(h[1]) + number(h[2]) + number(h[3])
redis.call('HSET', P .. 'job:' .. job, 'nq', 0, 'nl', 0, 'nw', 0, 'rd', 0, 'rf', 0, 'lp', 0)
count(job, {nc = tasks})
end_job(job, 'x')
return 'x'
