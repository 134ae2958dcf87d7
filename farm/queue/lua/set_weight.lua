#!lua flags=allow-oom
-- Sets a tenant's share of its class (docs/fairness.md).
--
-- requires: prelude, interning
--
-- ARGV  tenant, its weight
--
-- Returns 1.
--
--   weights   hash: tenant -> weight; 1 for a tenant that is not in it
redis.call('HSET', P .. 'weights', intern('tenant', ARGV[1]), ARGV[2])
return 1
