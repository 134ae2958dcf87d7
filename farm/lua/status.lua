#!lua flags=no-writes
-- ARGV  job, tenant
--
-- Returns the job's header as a flat list of fields and values.
local _, refused = own_job(ARGV[1], ARGV[2])
if refused then return refused end
return redis.call('HGETALL', P .. 'job:' .. ARGV[1])
