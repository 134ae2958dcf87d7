#!lua flags=no-writes
-- with: paged
-- ARGV  tenant, limit, job to start before or empty
--
-- Returns for each job, newest first: its id, its header.
local owner = tenant_number(ARGV[1])
if not owner then return {} end
local before = math.huge
if ARGV[3] ~= '' then before = number(redis.call('HGET', P .. 'job:' .. ARGV[3], 'q')) end
local found = {}
for _, job in ipairs(paged_before(P .. 'of:' .. owner, before, tonumber(ARGV[2]))) do
  found[#found + 1] = {job, redis.call('HGETALL', P .. 'job:' .. job)}
end
return found
