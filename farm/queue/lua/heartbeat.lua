#!lua flags=allow-oom
-- A worker is alive: extends everything that its session holds to so much later than now.
--
-- requires: prelude, job_record, task_record, held_record, leases
--
-- ARGV  session, lease (ms), room (pictures), stats as JSON, those that the planner reads as JSON,
--       then for each task that it works on: lease key, pictures done so far, failed so far,
--       the row that runs next if it runs row by row, or empty
--
-- Returns {command or empty, keys held, keys cancelled, 1 if the session should lease for itself}.
-- The session no longer holds what was cancelled; a worker drops everything that is not among the
-- keys held.
--
-- Sessions lease for themselves while no scheduler looks (rooms.lua), but so few at a time that a
-- thousand of them cost the server little.
local ABSENT = 1000 -- ms since a scheduler looked
local LOOKS = 100 -- a second, of all sessions together; each sends a heartbeat a second

local session = ARGV[1]
if redis.call('EXISTS', P .. 'session:' .. session) == 0 then
  return refuse('LEASELOST', 'the session has ended', 'register again and drop everything')
end
local progress = {}
for at = 6, #ARGV, 4 do
  progress[ARGV[at]] = {
    done = tonumber(ARGV[at + 1]), failed = tonumber(ARGV[at + 2]), row = ARGV[at + 3],
  }
end
local unseen = unseen_keys(session)
local held, cancelled, room = {}, {}, tonumber(ARGV[3])
local entries = redis.call('HGETALL', P .. 'held:' .. session)
for at = 1, #entries, 2 do
  local key = entries[at]
  local job, name = split_key(key)
  local head = read_job(job)
  local task = head and read_task(job, name)
  if task and head.state ~= 'x' and holds(session, task) then
    held[#held + 1] = key
    local entry = unpack_held(entries[at + 1])
    if unseen[key] then room = room - entry.pictures end
    local at_work = progress[key]
    if at_work and (at_work.done ~= entry.done or at_work.failed ~= entry.failed
        or at_work.row ~= entry.row) then
      count(job, {rd = at_work.done - entry.done, rf = at_work.failed - entry.failed})
      redis.call('HSET', P .. 'held:' .. session, key, pack_held(entry.attempt, entry.alone,
        entry.pictures, at_work.done, at_work.failed, at_work.row))
    end
  else
    cancelled[#cancelled + 1] = key
    let_go(session, job, name, head)
  end
end
redis.call('ZADD', P .. 'sessions', now + ARGV[2], session)
redis.call('HSET', P .. 'session:' .. session, 'seen', now, 'room', math.max(0, room),
  'lease', ARGV[2], 'stats', ARGV[4], 'told', ARGV[5])
local scheduled = number(redis.call('GET', P .. 'scheduled'))
local absent = scheduled > now or now - scheduled > ABSENT
local looks = absent and math.random() * redis.call('ZCARD', P .. 'sessions') < LOOKS
return {
  redis.call('HGET', P .. 'session:' .. session, 'command') or '', held, cancelled, looks and 1 or 0,
}
