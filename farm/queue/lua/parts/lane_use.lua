-- Which lanes are in use: a lane that no job has tasks in is forgotten.
--
-- requires: constants, prelude, interning
--
--   busy-lanes:<tenant>   hash: lane -> the tenant's jobs with tasks in it that have not ended

-- Calls `visit` with each lane in which a job has tasks.
local function each_lane(job, visit)
  local lanes = redis.call('HGET', P .. 'job:' .. job, 'ln') or ''
  for lane in string.gmatch(lanes, '%d+') do visit(lane) end
end

-- Whether a tenant may have unfinished work in these lanes too, given as texts.
local function lanes_fit(tenant, texts)
  local busy = P .. 'busy-lanes:' .. tenant
  local lanes = redis.call('HLEN', busy)
  if lanes + #texts <= MAX_TENANT_LANES then return true end
  for _, text in ipairs(texts) do
    local lane = redis.call('HGET', P .. 'lane:numbers', text)
    if not lane or redis.call('HEXISTS', busy, lane) == 0 then lanes = lanes + 1 end
  end
  return lanes <= MAX_TENANT_LANES
end

-- A job that has not ended has tasks in these lanes, perhaps for the first time.
local function use_lanes(job, tenant, lanes)
  local key = P .. 'job:' .. job
  local listed = redis.call('HGET', key, 'ln')
  local all, fresh = ',' .. (listed or '') .. ',', {}
  for _, lane in ipairs(lanes) do
    if not string.find(all, ',' .. lane .. ',', 1, true) then
      fresh[#fresh + 1] = lane
      all = all .. lane .. ','
    end
  end
  if #fresh == 0 then return end
  redis.call('HSET', key, 'ln', (listed and listed .. ',' or '') .. table.concat(fresh, ','))
  for _, lane in ipairs(fresh) do
    redis.call('HINCRBY', P .. 'busy-lanes:' .. tenant, lane, 1)
    -- A lane from before lanes were counted has no count, and is never forgotten.
    if redis.call('HEXISTS', P .. 'lane:jobs', lane) == 1 then
      redis.call('HINCRBY', P .. 'lane:jobs', lane, 1)
    end
  end
end

-- A job that had ended is to run again.
local function reuse_lanes(job, tenant)
  each_lane(job, function(lane)
    redis.call('HINCRBY', P .. 'busy-lanes:' .. tenant, lane, 1)
  end)
end

-- One job fewer; returns whether it was the last. What is not counted has no last one.
local function lower(key, lane)
  if redis.call('HEXISTS', key, lane) == 0 then return false end
  if redis.call('HINCRBY', key, lane, -1) > 0 then return false end
  redis.call('HDEL', key, lane)
  return true
end

-- A job has ended.
local function leave_lanes(job, tenant)
  each_lane(job, function(lane) lower(P .. 'busy-lanes:' .. tenant, lane) end)
end

-- A job is about to be deleted. Returns the number of its lanes.
local function forget_lanes(job)
  local lanes = 0
  each_lane(job, function(lane)
    lanes = lanes + 1
    if lower(P .. 'lane:jobs', lane) then forget_lane(lane) end
  end)
  return lanes
end
