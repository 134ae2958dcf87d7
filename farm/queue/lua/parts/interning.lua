-- Small numbers for the texts that users choose, so that no key contains user text.
--
-- requires: prelude
--
--   counters           hash: kind -> highest number given out
--   <kind>:numbers     hash: text -> number; a kind is tenant, lane, checkpoint or numerics
--   <kind>:texts       hash: number -> text
--   lane:checkpoints   hash: lane -> its checkpoint
--   lane:jobs          hash: lane -> jobs with tasks in it, also those that have ended

local function intern(kind, text)
  local known = redis.call('HGET', P .. kind .. ':numbers', text)
  if known then return tonumber(known) end
  local fresh = redis.call('HINCRBY', P .. 'counters', kind, 1)
  redis.call('HSET', P .. kind .. ':numbers', text, fresh)
  redis.call('HSET', P .. kind .. ':texts', fresh, text)
  return fresh
end

local function intern_lane(text)
  local known = redis.call('HGET', P .. 'lane:numbers', text)
  if known then return tonumber(known) end
  local fresh = intern('lane', text)
  local checkpoint = intern('checkpoint', string.match(text, '^(.*)/[^/]+/[^/]+$'))
  redis.call('HSET', P .. 'lane:checkpoints', fresh, checkpoint)
  redis.call('HSET', P .. 'lane:jobs', fresh, 0)
  return fresh
end

-- The lane's number is not given out again.
local function forget_lane(lane)
  local text = redis.call('HGET', P .. 'lane:texts', lane)
  if text then redis.call('HDEL', P .. 'lane:numbers', text) end
  redis.call('HDEL', P .. 'lane:texts', lane)
  redis.call('HDEL', P .. 'lane:checkpoints', lane)
end

local function tenant_number(text)
  return redis.call('HGET', P .. 'tenant:numbers', text)
end
