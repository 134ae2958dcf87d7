#!lua flags=no-writes
-- The sessions of workers.
--
-- requires: prelude, held_record
--
-- Returns for each session: session, worker, checkpoints' names, room, tasks held, ms since its
-- last heartbeat, info, stats, command or empty.
--
-- A session that would be granted nothing now is shown without room: it holds a task that runs
-- alone, drains for one, or has a command.
local function takes_nothing(session, held, command)
  if command or (held > 0 and redis.call('SISMEMBER', P .. 'draining', session) == 1) then
    return true
  end
  local only = held == 1 and redis.call('HVALS', P .. 'held:' .. session)[1]
  return only and unpack_held(only).alone ~= SHARED
end

local found = {}
for _, session in ipairs(redis.call('ZRANGE', P .. 'sessions', 0, -1)) do
  local s = redis.call('HMGET', P .. 'session:' .. session,
    'worker', 'checkpoints', 'room', 'seen', 'info', 'stats', 'command')
  if s[1] then
    local names = {}
    for checkpoint in string.gmatch(s[2], '%d+') do
      names[#names + 1] = redis.call('HGET', P .. 'checkpoint:texts', checkpoint)
    end
    local held = redis.call('HLEN', P .. 'held:' .. session)
    local room = takes_nothing(session, held, s[7]) and 0 or number(s[3])
    found[#found + 1] = {
      session, s[1], names, room, held,
      now - s[4], s[5], s[6] or '{}', s[7] or '',
    }
  end
end
return found
