#!lua flags=allow-oom
-- with: paged ready
-- Nothing more of a job starts until it is resumed; what runs goes on.
--
-- ARGV  job, tenant, 1 to pause or 0 to resume
local job, pause = ARGV[1], ARGV[3] == '1'
local head, refused = own_job(job, ARGV[2])
if refused then return refused end
if head.state ~= 'o' and head.state ~= 'c' then
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
