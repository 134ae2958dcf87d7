#!lua flags=no-writes
-- What is ready, for the planner.
--
-- requires: prelude, job_record, task_record, ready_index
--
-- Returns for each lane and class with ready tasks: lane's text, class, tasks, pictures.
local MAX_SUSPECTS = 64 -- jobs looked at per checkpoint

local tasks, pictures = {}, {}
local function read(key, into)
  local entries = redis.call('HGETALL', P .. key)
  for at = 1, #entries, 2 do into[entries[at]] = tonumber(entries[at + 1]) end
end
read('work:tasks', tasks)
read('work:pictures', pictures)
for _, checkpoint in ipairs(redis.call('HKEYS', P .. 'checkpoint:texts')) do
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
