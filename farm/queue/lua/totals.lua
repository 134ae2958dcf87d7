#!lua flags=no-writes
-- A job's pictures, whoever asks: for the worker that finalises it.
--
-- requires: prelude
--
-- ARGV  job
--
-- Returns how many there are, how many of them are done, failed, expired, and done while running.
return redis.call('HMGET', P .. 'job:' .. ARGV[1], 'i', 'id', 'if', 'ix', 'rd')
