#!lua
-- (none) -> QUEUED: open, append and close in one
--
-- requires: prelude, interning, submission
--
-- ARGV  job, tenant, fingerprint, idempotency key or empty, class, options as JSON,
--       deadline (ms) or empty, renders rejected, tasks
--
-- Returns {job, 1 if this submission made it}: the same submission again finds its job.
if not aof_rewritten() then return refuse('REWRITE', 'the server was restarted') end
local known, refused = find_submitted(ARGV[1], ARGV[2], ARGV[3], ARGV[4])
if refused then return refused end
if known then return known end
local tasks = cjson.decode(ARGV[9])
refused = check_tasks(ARGV[1], tenant_number(ARGV[2]), tasks)
if refused then return refused end
open_job(ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7])
write_tasks(ARGV[1], tasks, tonumber(ARGV[8]))
close_job(ARGV[1], 1)
return {ARGV[1], 1}
