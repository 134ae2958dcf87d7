-- What a session holds.
--
-- requires: prelude, job_record, task_record, held_record
--
--   inbox:<session>    list: lease keys that were granted and not fetched yet
--   draining           set: sessions that get nothing until they hold nothing, so that one of them
--                      can take a task that runs alone
--   isolated           set: sessions that took one, until a lease finds that they have finished

-- Leases one task to a session; lease.lua does the same for many.
local function hold(session, job, name, record)
  local key = lease_key(job, name)
  local started, held = start_record(record, session)
  redis.call('HSET', P .. 'held:' .. session, key, held)
  redis.call('RPUSH', P .. 'inbox:' .. session, key)
  redis.call('HSET', task_key(job, name), name, started)
end

-- The keys in a session's inbox, as a set.
local function unseen_keys(session)
  local unseen = {}
  for _, key in ipairs(redis.call('LRANGE', P .. 'inbox:' .. session, 0, -1)) do
    unseen[key] = true
  end
  return unseen
end

-- A session no longer holds these keys.
local function forget(session, keys)
  redis.call('HDEL', P .. 'held:' .. session, unpack(keys))
  local unseen = unseen_keys(session)
  for _, key in ipairs(keys) do
    if unseen[key] then redis.call('LREM', P .. 'inbox:' .. session, 1, key) end
  end
end

-- Ends a lease. What the session had reported as rendered no longer counts as running.
-- Returns the row that was running alone, or an empty text.
local function let_go(session, job, name, head)
  local key = lease_key(job, name)
  local text = redis.call('HGET', P .. 'held:' .. session, key)
  if not text then return '' end
  local held = unpack_held(text)
  forget(session, {key})
  if head and alive(head) then count(job, {rd = -held.done, rf = -held.failed}) end
  return held.row
end
