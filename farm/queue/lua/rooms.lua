#!lua flags=allow-oom
-- What the planner needs of the sessions; it also tells them that somebody plans.
--
-- requires: prelude, held_record, ready_index
--
--   scheduled   string: when a scheduler looked last (ms), to a quarter of a second; heartbeat.lua
--
-- Returns as JSON {jobs to finalise, checkpoints' numbers and texts in turn, sessions}, for each
-- session {session, checkpoints' numbers, room, tasks held, command or empty, and as JSON what its
-- worker told}.
--
-- A session that would be granted nothing now has no room, so that the planner does not count on
-- it: it holds a task that runs alone, drains for one, or has a command. One that drains is still
-- granted what is urgent; for the others it is not said what their workers told.
local MARK = 250 -- ms; each write waits for the disk

local scheduled = number(redis.call('GET', P .. 'scheduled'))
if scheduled > now or now - scheduled >= MARK then redis.call('SET', P .. 'scheduled', now) end

local function members(key)
  local found = {}
  for _, member in ipairs(redis.call('SMEMBERS', P .. key)) do found[member] = true end
  return found
end

local checkpoints, suspects = redis.call('HGETALL', P .. 'checkpoint:texts'), false
for at = 1, #checkpoints, 2 do
  suspects = suspects or redis.call('EXISTS', suspects_key(checkpoints[at])) == 1
end
-- Where no task runs alone any more, the next lease of a draining session ends that.
local draining = suspects and members('draining') or {}
local isolated = members('isolated') -- not all of them still are

local function takes_nothing(session, held, command)
  if command then return true end
  local only = held == 1 and isolated[session] and redis.call('HVALS', P .. 'held:' .. session)[1]
  return only and unpack_held(only).alone ~= SHARED
end

local found = {}
for _, session in ipairs(redis.call('ZRANGE', P .. 'sessions', 0, -1)) do
  local key = P .. 'session:' .. session
  local s = redis.call('HMGET', key, 'checkpoints', 'room', 'command', 'told')
  if s[1] then
    local held = redis.call('HLEN', P .. 'held:' .. session)
    -- A worker of an earlier version tells it among its stats.
    local told = s[4] or redis.call('HGET', key, 'stats') or '{}'
    local closed = takes_nothing(session, held, s[3])
    local full = closed or (held > 0 and draining[session])
    found[#found + 1] = {
      session, s[1], full and 0 or number(s[2]), held, s[3] or '', closed and '{}' or told,
    }
  end
end
return cjson.encode({redis.call('LLEN', P .. 'finalise'), checkpoints, found})
