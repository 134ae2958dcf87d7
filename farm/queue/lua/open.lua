#!lua
-- (none) -> OPEN
--
-- requires: prelude, job_record, submission
--
-- ARGV  job, tenant, fingerprint, idempotency key or empty, class, options as JSON,
--       deadline (ms) or empty
--
-- Returns {job, 1 if this submission made it}: the same submission again finds its job.
if not aof_rewritten() then return refuse('REWRITE', 'the server was restarted') end
local known, refused = find_submitted(ARGV[1], ARGV[2], ARGV[3], ARGV[4])
if refused then return refused end
if known then
  redis.call('ZADD', P .. 'opened', 'XX', now, known[1])
  return known
end
redis.call('ZADD', P .. 'opened', now, ARGV[1])
open_job(ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7])
event(ARGV[1], 'open')
return {ARGV[1], 1}
