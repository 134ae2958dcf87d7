#!lua flags=allow-oom
-- Nothing more of a job starts until it is resumed; what runs goes on.
--
-- requires: prelude, job_record, ready_index
--
-- ARGV  job, tenant, 1 to pause or 0 to resume
--
-- Returns 1.
local job, pause = ARGV[1], ARGV[3] == '1'
local head, refused = own_job(job, ARGV[2])
if refused then return refused end
if not alive(head) then
  return refuse('CONFLICT', 'job ' .. job .. ' has ended')
end
if pause == head.paused then return 1 end
if pause then
  hide_ready(job, head)
  redis.call('HSET', P .. 'job:' .. job, 'ps', 1)
else
  redis.call('HDEL', P .. 'job:' .. job, 'ps')
  head.paused = false
  show_ready(job, head)
end
event(job, pause and 'paused' or 'resumed')
return 1
