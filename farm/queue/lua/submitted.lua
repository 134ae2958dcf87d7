#!lua flags=no-writes
-- Whether a submission has come in whole, so that sending it again asks for nothing more.
--
-- requires: prelude, interning
--
-- ARGV  tenant, idempotency key
--
-- Returns 1 if the key has a job that is not open, or 0.
local owner = tenant_number(ARGV[1])
local job = owner and redis.call('HGET', P .. 'keys:' .. owner, ARGV[2])
local state = job and redis.call('HGET', P .. 'job:' .. job, 's')
return state and state ~= 'o' and 1 or 0
