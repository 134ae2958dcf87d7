#!lua flags=no-writes
-- What has happened since the queue began, and for how long the oldest ready job of each class has
-- waited.
--
-- requires: constants, prelude, ready_index
--
-- Returns {names and numbers as they are stored, tenants' numbers and texts,
-- then for each class that has ready jobs: class, ms since the oldest was submitted}. With very many
-- lanes or tenants it looks at some of them: those of a lane that have had least come first.
local MAX_LANES = 64 -- per class and checkpoint
local MAX_TENANTS = 8 -- in a lane

local function submitted(lane, class, tenant)
  local key = jobs_key(lane, class, tenant)
  local page = redis.call('ZRANGE', key, 0, 0)[1]
  local job = page and redis.call('ZRANGE', key .. ':' .. page, 0, 0)[1]
  return job and tonumber(redis.call('HGET', P .. 'job:' .. job, 'c'))
end

local function oldest(class)
  local found
  for _, checkpoint in ipairs(redis.call('HKEYS', P .. 'checkpoint:texts')) do
    local lanes = redis.call('SRANDMEMBER', P .. 'lanes:' .. checkpoint .. ':' .. class, MAX_LANES)
    for _, lane in ipairs(lanes) do
      local tenants = redis.call('ZRANGE', P .. 'tenants:' .. lane .. ':' .. class, 0,
        MAX_TENANTS - 1)
      for _, tenant in ipairs(tenants) do
        local created = submitted(lane, class, tenant)
        if created and (not found or created < found) then found = created end
      end
    end
  end
  return found
end

local ages = {}
for class = URGENT, BULK do
  local created = oldest(class)
  if created then ages[#ages + 1] = {class, math.max(0, now - created)} end
end
return {
  redis.call('HGETALL', P .. 'tallies'), redis.call('HGETALL', P .. 'tenant:texts'), unpack(ages),
}
