#!lua flags=allow-oom
-- DONE, FAILED or CANCELLED -> removed: the queue forgets the job and lists what is to be deleted.
--
-- requires: prelude, interning, job_record, job_lifecycle, job_removal
--
-- ARGV  job, tenant, 1 if the store knows the job as the tenant's
--
-- Returns its entry among the removals, and for how long workers may still store something (ms),
-- 0 or less if they do not. A job that is listed already stays listed as it was.
local job, tenant = ARGV[1], ARGV[2]
local entry = owned_job(job, tenant_number(tenant) or '')
local listed = redis.call('ZSCORE', P .. 'removals', entry)
if listed then return {entry, listed - now} end
local head, refused = own_job(job, tenant)
if not head and (ARGV[3] ~= '1' or read_job(job)) then return refused end
if head and alive(head) then
  return refuse('CONFLICT', 'job ' .. job .. ' has not ended', 'farm cancel ' .. job
    .. ' ends it, farm wait ' .. job .. ' waits for its end')
end
local owner = intern('tenant', tenant)
remove_job(job, owner)
entry = owned_job(job, owner)
return {entry, redis.call('ZSCORE', P .. 'removals', entry) - now}
