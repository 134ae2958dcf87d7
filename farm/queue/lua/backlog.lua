#!lua flags=no-writes
-- What is ready, for the planner.
--
-- requires: constants, prelude, job_record, task_record, ready_index
--
-- Returns for each lane and class with ready tasks: lane's text, class, tasks, pictures. Of very many
-- lanes it returns some, others with each call.
local MAX_LANES = 256 -- per class and checkpoint
local MAX_SUSPECTS = 64 -- jobs looked at per checkpoint

local tasks, pictures = {}, {}

local function read(key, places, into)
  for at, ready in ipairs(redis.call('HMGET', P .. key, unpack(places))) do
    into[places[at]] = tonumber(ready)
  end
end

for _, checkpoint in ipairs(redis.call('HKEYS', P .. 'checkpoint:texts')) do
  for class = URGENT, BULK do
    local places = redis.call('SRANDMEMBER', P .. 'lanes:' .. checkpoint .. ':' .. class, MAX_LANES)
    for at, lane in ipairs(places) do places[at] = lane .. ':' .. class end
    if #places > 0 then
      read('work:tasks', places, tasks)
      read('work:pictures', places, pictures)
    end
  end
  local jobs = redis.call('ZRANGE', suspects_key(checkpoint), 0, MAX_SUSPECTS - 1)
  for _, job in ipairs(jobs) do
    local head = read_job(job)
    local _, records = read_suspects(job, checkpoint)
    for _, record in pairs(records) do
      local task = unpack_task(record)
      local place = task.lane .. ':' .. head.class
      tasks[place] = (tasks[place] or 0) + 1
      pictures[place] = (pictures[place] or 0) + task.pictures
    end
  end
end
local found = {}
for place, ready in pairs(tasks) do
  local lane, class = string.match(place, '^(%d+):(%d)$')
  found[#found + 1] = {
    redis.call('HGET', P .. 'lane:texts', lane), tonumber(class), ready, pictures[place] or 0,
  }
end
return found
