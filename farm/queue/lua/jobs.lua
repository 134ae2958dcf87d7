#!lua flags=no-writes
-- A tenant's jobs, newest first.
--
-- requires: prelude, interning, paged_set
--
-- ARGV  tenant, limit, job to start before or empty
--
-- Returns for each job: its id, its header.
local owner = tenant_number(ARGV[1])
if not owner then return {} end
local before = math.huge
if ARGV[3] ~= '' then before = number(redis.call('HGET', P .. 'job:' .. ARGV[3], 'q')) end
local found = {}
for _, job in ipairs(paged_before(P .. 'of:' .. owner, before, tonumber(ARGV[2]))) do
  found[#found + 1] = {job, redis.call('HGETALL', P .. 'job:' .. job)}
end
return found
