#!lua flags=allow-oom
-- with: paged ready settle
-- OPEN, QUEUED or RUNNING -> CANCELLED, at once, however many tasks there are.
--
-- ARGV  job, tenant
--
-- The tasks' records are left as they are: what the job says overrides them. Workers hear of it in
-- their next beat. Returns the letter of the job's state, which a job that has ended keeps.
local job = ARGV[1]
local head, refused = own_job(job, ARGV[2])
if refused then return refused end
if head.state ~= 'o' and head.state ~= 'c' then return head.state end
drop_ready(job, head)
local h = redis.call('HMGET', P .. 'job:' .. job, 'nq', 'nl', 'nw')
local tasks = number(h[1]) + number(h[2]) + number(h[3])
redis.call('HSET', P .. 'job:' .. job, 'nq', 0, 'nl', 0, 'nw', 0, 'rd', 0, 'rf', 0, 'lp', 0)
count(job, {nc = tasks})
end_job(job, 'x')
return 'x'
