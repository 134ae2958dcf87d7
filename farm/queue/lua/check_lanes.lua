#!lua flags=allow-oom
-- Compares the index of ready work in some lanes with what it refers to, and repairs what differs.
--
-- requires: constants, prelude, paged_set, ready_index
--
-- ARGV  1 to repair or 0 to report only, then the lanes
--
-- Takes some microseconds per lane, class and tenant and per job with ready tasks, during which
-- Redis does nothing else.
-- Returns a line for each finding.
local repair = ARGV[1] == '1'
local found = {}
local function find(text) found[#found + 1] = text end

local tenants = redis.call('HKEYS', P .. 'tenant:texts')

-- A lane that was forgotten since the caller listed it has nothing to compare.
local function check_lane(lane)
  if not checkpoint_of(lane) then return end
  for class = URGENT, BULK do
    local place = lane .. ':' .. class
    local tasks, pictures, busy = 0, 0, 0
    for _, tenant in ipairs(tenants) do
      local jobs = paged_all(jobs_key(lane, class, tenant))
      for _, job in ipairs(jobs) do
        tasks = tasks + ready_count(job, lane)
        pictures = pictures + number(redis.call('HGET', P .. 'job:' .. job, 'r' .. lane))
      end
      local listed = redis.call('ZSCORE', P .. 'tenants:' .. place, tenant) and true or false
      if #jobs > 0 then busy = busy + 1 end
      if listed ~= (#jobs > 0) then
        find('lane ' .. lane .. (listed and ' lists tenant ' or ' does not list tenant ') .. tenant
          .. (listed and ', who has nothing to run' or ', who has ready tasks'))
        if repair and listed then redis.call('ZREM', P .. 'tenants:' .. place, tenant) end
        if repair and not listed then
          local time = number(redis.call('HGET', fair_key(lane, class), tenant))
          redis.call('ZADD', P .. 'tenants:' .. place, time, tenant)
        end
      end
    end
    local lanes = P .. 'lanes:' .. checkpoint_of(lane) .. ':' .. class
    local listed = redis.call('SISMEMBER', lanes, lane) == 1
    if listed ~= (busy > 0) then
      find('lane ' .. lane .. (listed and ' is listed, but has nothing to run'
        or ' has ready tasks, but is not listed'))
      if repair then redis.call(listed and 'SREM' or 'SADD', lanes, lane) end
    end
    for key, value in pairs({['work:tasks'] = tasks, ['work:pictures'] = pictures}) do
      local stored = number(redis.call('HGET', P .. key, place))
      if stored ~= value then
        find(key .. ' of ' .. place .. ' is ' .. stored .. '; its jobs give ' .. value)
        if repair and value > 0 then redis.call('HSET', P .. key, place, value) end
        if repair and value == 0 then redis.call('HDEL', P .. key, place) end
      end
    end
  end
end

for at = 2, #ARGV do check_lane(ARGV[at]) end
return found
