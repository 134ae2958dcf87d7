#!lua flags=no-writes
-- ARGV  tenant, limit, job to start before or empty
--
-- Returns for each job, newest first: its id, its header.
local owner = tenant_number(ARGV[1])
if not owner then return {} end
local start = ARGV[3] == '' and '+' or '(' .. ARGV[3]
local found = {}
for _, job in ipairs(redis.call('ZRANGE', P .. 'of:' .. owner, start, '-', 'BYLEX', 'REV',
    'LIMIT', 0, tonumber(ARGV[2]))) do
  found[#found + 1] = {job, redis.call('HGETALL', P .. 'job:' .. job)}
end
return found
