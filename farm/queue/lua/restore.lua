#!lua
-- Puts tasks back into an OPEN job after the queue's data were lost; those that are there stay.
--
-- requires: prelude, interning, job_record, task_record, receipt, lane_use, submission
--
-- ARGV  job, when it was created (ms), generation, JSON list of {task, lane, pictures, cost, state,
--       pictures done, pictures failed, receipt as JSON or reason, numerics class, 1 if its failed
--       pictures may be retried}; the state is (q)ueued, (d)one or (f)ailed. All but the pictures
--       done and failed are texts.
--
-- Returns how many tasks were put back.
local job = ARGV[1]
local head = read_job(job)
if not head or head.state ~= 'o' then
  return refuse('CONFLICT', 'job ' .. job .. ' is not open')
end
redis.call('HSET', P .. 'job:' .. job, 'c', ARGV[2], 'g', ARGV[3])
local tasks = cjson.decode(ARGV[4])
local names = {}
for at, task in ipairs(tasks) do names[at] = task[1] end
local known = read_records(job, names)
local queued, records, lanes = {}, {}, {}
local counts = {n = 0, nd = 0, nf = 0, i = 0, k = 0, id = 0, ['if'] = 0}
local back = 0
for _, task in ipairs(tasks) do
  local name, state, pictures = task[1], task[5], tonumber(task[3])
  if not known[name] then
    back = back + 1
    if state == 'q' then
      queued[#queued + 1] = {name, task[2], task[3], task[4], ''}
    else
      local rest = task[8]
      if state == 'd' then
        rest = pack_receipt(task[9], rest)
        redis.call('RPUSH', P .. 'finished:' .. job, name)
      end
      if task[10] == '1' then redis.call('RPUSH', P .. 'failures:' .. job, name) end
      records[#records + 1] = name
      local lane = intern_lane(task[2])
      lanes[#lanes + 1] = lane
      records[#records + 1] = pack_task({
        state = state, lane = lane, pictures = pictures, cost = tonumber(task[4]),
        attempt = 1, crashes = 0, losses = 0, alone = 0, session = '', rest = rest,
      })
      local first = not string.find(name, '/', 1, true)
      counts.n = counts.n + 1
      counts.nd = counts.nd + (state == 'd' and 1 or 0)
      counts.nf = counts.nf + (state == 'f' and 1 or 0)
      counts.i = counts.i + (first and pictures or 0)
      counts.k = counts.k + (first and task[4] or 0)
      counts.id = counts.id + task[6]
      counts['if'] = counts['if'] + task[7] - (first and 0 or pictures)
    end
  end
end
if #records > 0 then
  write_records(job, records)
  use_lanes(job, head.tenant, lanes)
  count(job, counts)
  if not head.begun then redis.call('HSET', P .. 'job:' .. job, 'b', ARGV[2]) end
end
if #queued > 0 then write_tasks(job, queued, 0) end
return back
