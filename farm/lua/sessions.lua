#!lua flags=no-writes
-- with: settle
-- Returns for each session: session, worker, checkpoints' names, room, tasks held, ms since its
-- last sign of life, info, stats, command or empty.
local found = {}
for _, session in ipairs(redis.call('ZRANGE', P .. 'sessions', 0, -1)) do
  local s = redis.call('HMGET', P .. 'session:' .. session,
    'worker', 'checkpoints', 'room', 'seen', 'info', 'stats', 'command')
  if s[1] then
    local names = {}
    for checkpoint in string.gmatch(s[2], '%d+') do
      names[#names + 1] = redis.call('HGET', P .. 'checkpoint:texts', checkpoint)
    end
    found[#found + 1] = {
      session, s[1], names, number(s[3]), redis.call('HLEN', P .. 'held:' .. session),
      now - s[4], s[5], s[6] or '{}', s[7] or '',
    }
  end
end
return found
