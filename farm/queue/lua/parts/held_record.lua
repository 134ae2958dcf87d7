-- What a session remembers of a task that it holds.
--
--   held:<session>  hash: lease key -> attempt|alone|pictures|done|failed|row
--
-- `alone` is 0, BY_ROW or ISOLATED. `done` and `failed` are the pictures reported so far; `row` is the row that runs next if the task
-- runs row by row, else empty.

local SHARED, BY_ROW, ISOLATED = 0, 1, 2 -- how a task runs beside others: not at all but for 0

local function pack_held(attempt, alone, pictures, done, failed, row)
  return attempt .. '|' .. alone .. '|' .. pictures .. '|' .. done .. '|' .. failed .. '|' .. row
end

local function unpack_held(text)
  local attempt, alone, pictures, done, failed, row =
    string.match(text, '^(%d+)|(%d+)|(%d+)|(%d+)|(%d+)|(%d*)$')
  return {
    attempt = tonumber(attempt), alone = tonumber(alone), pictures = tonumber(pictures),
    done = tonumber(done), failed = tonumber(failed), row = row,
  }
end
