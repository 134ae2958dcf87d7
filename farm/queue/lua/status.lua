#!lua flags=no-writes
-- A job's header.
--
-- requires: prelude, job_record
--
-- ARGV  job, tenant
--
-- Returns it as a flat list of fields and values.
local _, refused = own_job(ARGV[1], ARGV[2])
if refused then return refused end
return redis.call('HGETALL', P .. 'job:' .. ARGV[1])
