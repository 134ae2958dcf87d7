#!lua flags=allow-oom
-- ARGV  tenant, its weight
--
--   weights   hash: tenant -> share of its class; 1 where there is none
redis.call('HSET', P .. 'weights', intern('tenant', ARGV[1]), ARGV[2])
return 1
