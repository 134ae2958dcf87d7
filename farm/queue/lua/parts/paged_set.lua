-- A long sorted set in pages that Redis keeps packed: 45 B per member instead of 130.
--
--   <key>          sorted set: page -> page
--   <key>:<page>   sorted set: member -> sequence

local PAGE = 100 -- members if the sequence has no gaps

local function paged_add(key, sequence, member)
  local page = math.floor(sequence / PAGE)
  redis.call('ZADD', key .. ':' .. page, sequence, member)
  redis.call('ZADD', key, page, page)
end

local function paged_remove_some(key, page, members)
  redis.call('ZREM', key .. ':' .. page, unpack(members))
  if redis.call('EXISTS', key .. ':' .. page) == 0 then redis.call('ZREM', key, page) end
end

local function paged_remove(key, sequence, member)
  paged_remove_some(key, math.floor(sequence / PAGE), {member})
end

local function paged_has(key, sequence, member)
  local page = math.floor(sequence / PAGE)
  return (redis.call('ZSCORE', key, page) and redis.call('ZSCORE', key .. ':' .. page, member))
    and true or false
end

-- At most `limit` members with a lower sequence, nearest first.
local function paged_before(key, sequence, limit)
  local found = {}
  local pages = redis.call('ZRANGE', key, math.floor(sequence / PAGE), '-inf', 'BYSCORE', 'REV',
    'LIMIT', 0, limit + 1)
  for _, page in ipairs(pages) do
    local members = redis.call('ZRANGE', key .. ':' .. page, '(' .. sequence, '-inf', 'BYSCORE',
      'REV', 'LIMIT', 0, limit - #found)
    for _, member in ipairs(members) do found[#found + 1] = member end
    if #found >= limit then break end
  end
  return found
end

local function paged_all(key)
  local found = {}
  for _, page in ipairs(redis.call('ZRANGE', key, 0, -1)) do
    for _, member in ipairs(redis.call('ZRANGE', key .. ':' .. page, 0, -1)) do
      found[#found + 1] = member
    end
  end
  return found
end
