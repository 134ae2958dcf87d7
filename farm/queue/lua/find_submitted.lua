#!lua flags=no-writes
-- The job that an earlier call of the same submission made.
--
-- requires: submission
--
-- ARGV  tenant, fingerprint, idempotency key
--
-- Returns the job, or nil.
local known, refused = find_submitted('', ARGV[1], ARGV[2], ARGV[3])
return refused or known and known[1]
