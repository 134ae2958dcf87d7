#!lua
-- with: paged ready settle intake
-- (none) -> QUEUED: open, append and close in one
--
-- ARGV  job, tenant, fingerprint, idempotency key or empty, class, options as JSON,
--       deadline (ms) or empty, renders rejected, tasks
--
-- Returns {job, 1 if it is this call's}: the same submission again finds its job.
if not server_settled() then return refuse('UNSETTLED', 'the server started anew') end
local known, refused = check_open(ARGV[1], ARGV[2], ARGV[3], ARGV[4])
if refused then return refused end
if known then return known end
local tasks = cjson.decode(ARGV[9])
refused = check_tasks(ARGV[1], tasks)
if refused then return refused end
open_job(ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7])
write_tasks(ARGV[1], tasks, tonumber(ARGV[8]))
close_job(ARGV[1], 1)
return {ARGV[1], 1}
