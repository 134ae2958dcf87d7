#!lua flags=no-writes
-- Jobs whose objects can be deleted from the store: no worker adds to them any more.
--
-- requires: prelude
--
-- ARGV  how many to pass over, limit
--
-- Returns for each: its entry, job, tenant.
local found = {}
for _, entry in ipairs(redis.call('ZRANGE', P .. 'removals', '-inf', now, 'BYSCORE',
    'LIMIT', ARGV[1], ARGV[2])) do
  local job, tenant = string.match(entry, '^(.*)/(%d+)$')
  found[#found + 1] = {entry, job, redis.call('HGET', P .. 'tenant:texts', tenant)}
end
return found
