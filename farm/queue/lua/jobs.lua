#!lua flags=no-writes
-- A tenant's jobs, newest first.
--
-- requires: prelude, interning, paged_set
--
-- ARGV  tenant, limit, job to start before or empty
--
-- Returns for each job: its id, its header. The job to start before may have been removed since it
-- was returned: then its place is found by the time in its id.
local WHEN = '^[^-]*-' .. string.rep('.', 10) -- of an id: what comes before its random digits

local owner = tenant_number(ARGV[1])
if not owner then return {} end
local key = P .. 'of:' .. owner

-- The sequence of the first job that came in after the one with this id.
local function sequence_behind(id)
  local time = string.match(id, WHEN)
  local function later(job) return string.match(job, WHEN) > time end
  local low, high = 0, redis.call('ZCARD', key) -- of the pages that begin later, the first is here
  while low < high do
    local middle = math.floor((low + high) / 2)
    local page = redis.call('ZRANGE', key, middle, middle)[1]
    if later(redis.call('ZRANGE', key .. ':' .. page, 0, 0)[1]) then
      high = middle
    else
      low = middle + 1
    end
  end
  if low == 0 then return 0 end
  local page = redis.call('ZRANGE', key, low - 1, low - 1)[1]
  local jobs = redis.call('ZRANGE', key .. ':' .. page, 0, -1, 'WITHSCORES')
  for at = 1, #jobs, 2 do
    if later(jobs[at]) then return tonumber(jobs[at + 1]) end
  end
  return (page + 1) * PAGE
end

local before = math.huge
if ARGV[3] ~= '' then
  before = tonumber(redis.call('HGET', P .. 'job:' .. ARGV[3], 'q') or sequence_behind(ARGV[3]))
end
local found = {}
for _, job in ipairs(paged_before(key, before, tonumber(ARGV[2]))) do
  found[#found + 1] = {job, redis.call('HGETALL', P .. 'job:' .. job)}
end
return found
