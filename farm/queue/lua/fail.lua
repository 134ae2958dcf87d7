#!lua flags=allow-oom
-- LEASED -> QUEUED | WAITING | FAILED | EXPIRED, if the session still holds the task.
--
-- requires: prelude, job_record, task_record, leases, job_lifecycle, task_lifecycle
--
-- ARGV  session, job, task, attempt, kind (row, crash, infra, release), reason
--
-- Returns the letter of the task's state. A session that does not hold the task changes nothing.
local session, job, name, kind = ARGV[1], ARGV[2], ARGV[3], ARGV[5]
local head = read_job(job)
local task = head and read_task(job, name)
if not task then return refuse('NOTFOUND', 'there is no task ' .. name .. ' of job ' .. job) end
if head.state == 'x' then
  if holds(session, task) then let_go(session, job, name, head) end
  return seen_state(head, task)
end
if not holds(session, task) or task.attempt ~= tonumber(ARGV[4]) then
  return seen_state(head, task)
end
local row = let_go(session, job, name, head)
local state = give_back(job, head, name, task, kind, row, ARGV[6])
finalise_when_ended(job, session)
return state
