#!lua
-- with: paged ready settle intake
-- (none) -> OPEN
--
-- ARGV  job, tenant, fingerprint, idempotency key or empty, class, options as JSON,
--       deadline (ms) or empty
--
-- Returns {job, 1 if it is this call's}: the same submission again finds its job.
if not server_settled() then return refuse('UNSETTLED', 'the server started anew') end
local known, refused = check_open(ARGV[1], ARGV[2], ARGV[3], ARGV[4])
if refused then return refused end
if known then return known end
open_job(ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7])
event(ARGV[1], 'open')
return {ARGV[1], 1}
