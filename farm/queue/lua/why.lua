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
local MAX_SUSPECTS = 64 -- looked at per checkpoint

local job = ARGV[1]
local head, refused = own_job(job, ARGV[2])
if refused then return refused end

local function weight(tenant)
  return tonumber(redis.call('HGET', P .. 'weights', tenant)) or 1
end

local function ready_pictures(of, lane)
  return number(redis.call('HGET', P .. 'job:' .. of, 'r' .. lane))
end

local function describe(lane, checkpoint)
  local tasks = ready_count(job, lane)
  if tasks == 0 then return nil end
  local task = read_task(job, redis.call('HGET', P .. 'job:' .. job, 'h' .. lane)
    or redis.call('LINDEX', ready_key(job, lane), 0))
  local place = lane .. ':' .. head.class
  local jobs = paged_before(jobs_key(lane, head.class, head.tenant), head.sequence, MAX_EARLIER)
  local earlier, higher, all = 0, 0, 0
  for _, other in ipairs(jobs) do earlier = earlier + ready_pictures(other, lane) end
  for class = URGENT, head.class - 1 do
    for _, other in ipairs(redis.call('SMEMBERS', P .. 'lanes:' .. checkpoint .. ':' .. class)) do
      higher = higher + number(redis.call('HGET', P .. 'work:pictures', other .. ':' .. class))
    end
  end
  for _, tenant in ipairs(redis.call('ZRANGE', P .. 'tenants:' .. place, 0, -1)) do
    if tenant ~= head.tenant then all = all + weight(tenant) end
  end
  local own = weight(head.tenant)
  return {
    redis.call('HGET', P .. 'lane:texts', lane), tasks, ready_pictures(job, lane),
    math.ceil(task.cost / task.pictures), #jobs + 1, earlier, higher, tostring(own),
    tostring(all + own),
  }
end

local suspects, seen, lanes = 0, {}, {}
for lane in string.gmatch(redis.call('HGET', P .. 'job:' .. job, 'ln') or '', '%d+') do
  local checkpoint = checkpoint_of(lane)
  if not seen[checkpoint] then
    seen[checkpoint] = true
    local place = P .. 'suspects:' .. checkpoint
    for _, key in ipairs(redis.call('ZRANGE', place, 0, MAX_SUSPECTS - 1)) do
      if split_key(key) == job then suspects = suspects + 1 end
    end
  end
  if #lanes < MAX_LANES then lanes[#lanes + 1] = describe(lane, checkpoint) end
end
return {redis.call('HGETALL', P .. 'job:' .. job), suspects, unpack(lanes)}
