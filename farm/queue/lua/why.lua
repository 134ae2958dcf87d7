#!lua flags=no-writes
-- Where a job's work stands in the queue, for people.
--
-- requires: constants, prelude, job_record, task_record, paged_set, ready_index
--
-- ARGV  job, tenant
--
-- Returns {header as fields and values, tasks that wait to run alone, then for each lane with ready
-- tasks: lane's text, tasks, pictures, row-steps of a picture, place among its tenant's jobs,
-- pictures of the tenant's earlier jobs, pictures of higher classes, its tenant's weight, weight of
-- all tenants}
local MAX_LANES = 64 -- returned
local MAX_EARLIER = 200 -- jobs counted
local MAX_OTHERS = 200 -- tenants counted in a lane
local MAX_READ = 2048 -- counters read at a time

local job = ARGV[1]
local head, refused = own_job(job, ARGV[2])
if refused then return refused end

local function weight(tenant)
  return tonumber(redis.call('HGET', P .. 'weights', tenant)) or 1
end

local function ready_pictures(of, lane)
  return number(redis.call('HGET', P .. 'job:' .. of, 'r' .. lane))
end

-- Pictures of higher classes for a checkpoint, counted once.
local counted = {}
local function higher_pictures(checkpoint)
  if counted[checkpoint] then return counted[checkpoint] end
  local total = 0
  for class = URGENT, head.class - 1 do
    local places = {}
    for _, lane in ipairs(redis.call('SMEMBERS', P .. 'lanes:' .. checkpoint .. ':' .. class)) do
      places[#places + 1] = lane .. ':' .. class
    end
    for first = 1, #places, MAX_READ do
      local last = math.min(first + MAX_READ - 1, #places)
      local pictures = redis.call('HMGET', P .. 'work:pictures', unpack(places, first, last))
      for _, ready in ipairs(pictures) do total = total + number(ready) end
    end
  end
  counted[checkpoint] = total
  return total
end

local function describe(lane, checkpoint)
  local tasks = ready_count(job, lane)
  if tasks == 0 then return nil end
  local task = read_task(job, redis.call('HGET', P .. 'job:' .. job, 'h' .. lane)
    or redis.call('LINDEX', ready_key(job, lane), 0))
  local place = lane .. ':' .. head.class
  local jobs = paged_before(jobs_key(lane, head.class, head.tenant), head.sequence, MAX_EARLIER)
  local earlier, all = 0, 0
  for _, other in ipairs(jobs) do earlier = earlier + ready_pictures(other, lane) end
  for _, tenant in ipairs(redis.call('ZRANGE', P .. 'tenants:' .. place, 0, MAX_OTHERS - 1)) do
    if tenant ~= head.tenant then all = all + weight(tenant) end
  end
  local own = weight(head.tenant)
  return {
    redis.call('HGET', P .. 'lane:texts', lane), tasks, ready_pictures(job, lane),
    math.ceil(task.cost / task.pictures), #jobs + 1, earlier, higher_pictures(checkpoint),
    tostring(own),
    tostring(all + own),
  }
end

local suspects, seen, lanes = 0, {}, {}
for lane in string.gmatch(redis.call('HGET', P .. 'job:' .. job, 'ln') or '', '%d+') do
  local checkpoint = checkpoint_of(lane)
  if not seen[checkpoint] then
    seen[checkpoint] = true
    suspects = suspects + redis.call('LLEN', alone_key(job, checkpoint))
  end
  if #lanes < MAX_LANES then lanes[#lanes + 1] = describe(lane, checkpoint) end
end
return {redis.call('HGETALL', P .. 'job:' .. job), suspects, unpack(lanes)}
