-- What a worker needs to start a task.
--
-- requires: prelude, crashed_rows

local lane_texts = {['0'] = '', [0] = ''}
local inline = {} -- job -> whether any of its chunks travels with its task

-- Returns {lease key, attempt, lane's text, pictures, cost, class, alone, chunk as JSON or empty,
-- rows to leave out}.
local function lease_payload(key, job, head, name, task)
  local lane = lane_texts[task.lane]
  if not lane then
    lane = redis.call('HGET', P .. 'lane:texts', task.lane)
    lane_texts[task.lane] = lane
  end
  if inline[job] == nil then inline[job] = redis.call('EXISTS', P .. 'text:' .. job) == 1 end
  local text = inline[job]
    and redis.call('HGET', P .. 'text:' .. job, string.match(name, '-?%d+$'))
  local _, skipped = crashed_rows(task)
  return {
    key, task.attempt, lane, task.pictures, task.cost, head.class, task.alone, text or '', skipped,
  }
end
