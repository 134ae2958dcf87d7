#!lua flags=allow-oom
-- OPEN, QUEUED or RUNNING -> CANCELLED, at once, however many tasks there are.
--
-- requires: job_record, job_lifecycle
--
-- ARGV  job, tenant
--
-- The records of the tasks stay unchanged: the job's state overrides theirs. Workers learn of it
-- from their next heartbeat; what they
-- have made by then, they may still complete. Returns the letter of the job's state; one that has ended keeps it.
local job = ARGV[1]
local head, refused = own_job(job, ARGV[2])
if refused then return refused end
if not alive(head) then return head.state end
cancel_job(job, head)
return 'x'
