-- What every script starts with: the clock, the key prefix, refusals.
--
-- requires: constants
--
-- KEYS[1] is the prefix of every key and carries the farm's hash tag. Redis is the only clock.

local P = KEYS[1]

local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000), tonumber(time[2])
end

local now, microsecond = clock()
math.randomseed(now % 1000003 * 1000 + microsecond % 1000)

-- farm/queue/connection.py makes an exception of the first word and a hint of what follows " | ".
local function refuse(kind, message, hint)
  if hint then message = message .. ' | ' .. hint end
  return redis.error_reply(kind .. ' ' .. message)
end

-- What a newer farm has written is not understood, so nothing is done with it. `server` is a hash;
-- farm/queue/identity.py sets its field `schema`.
if tonumber(redis.call('HGET', P .. 'server', 'schema') or 0) > SCHEMA then
  return refuse('NEWER', "the queue's data were written by a newer version of the farm",
    'install that version here as well, or give this farm another FARM_NAME')
end

local function number(text)
  return tonumber(text) or 0
end
