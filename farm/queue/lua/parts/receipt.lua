-- The receipt of a task that is done: the rest of its record.
--
-- requires: prelude, interning
--
-- It is written as class|text. The class is the number of the numerics class; the text is the JSON
-- list that farm/queue/encoding.py writes: [pictures done, failed, size, part, its sha256].

local numerics_numbers = {}

local function pack_receipt(numerics, text)
  numerics_numbers[numerics] = numerics_numbers[numerics] or intern('numerics', numerics)
  return numerics_numbers[numerics] .. '|' .. text
end

-- Returns the receipt's text and its numerics class.
local function unpack_receipt(task)
  local class, text = string.match(task.rest, '^(%d+)|(.*)$')
  return text, redis.call('HGET', P .. 'numerics:texts', class)
end

-- Returns how many pictures are done, and how many failed.
local function receipt_pictures(task)
  local receipt = cjson.decode(string.match(task.rest, '^%d+|(.*)$'))
  return receipt[1], receipt[2]
end

-- The same receipt with other numbers of pictures.
local function change_receipt(task, done, failed)
  local class, text = string.match(task.rest, '^(%d+)|(.*)$')
  local receipt = cjson.decode(text)
  receipt[1], receipt[2] = done, failed
  task.rest = class .. '|' .. cjson.encode(receipt)
end
