#!lua flags=allow-oom
-- Which scheduler places workers: of those that say that they do, the one that started last.
--
-- requires: prelude
--
--   placing   string: "start (ms), end of the answer (ms), scheduler"
--
-- ARGV  scheduler, its start (ms), for how long (ms)
--
-- Returns 1 if the caller places workers for that long, or 0 if another scheduler does.
local held = redis.call('GET', P .. 'placing')
if held then
  local started, ends, scheduler = string.match(held, '^(%d+) (%d+) (.*)$')
  local mine, other = tonumber(ARGV[2]), tonumber(started)
  local later = other > mine or (other == mine and scheduler > ARGV[1])
  local left = ends - now -- more than can be was said before the clock was set back
  if later and left > 0 and left <= tonumber(ARGV[3]) then return 0 end
end
local ends = string.format('%.0f', now + ARGV[3])
redis.call('SET', P .. 'placing', ARGV[2] .. ' ' .. ends .. ' ' .. ARGV[1])
return 1
