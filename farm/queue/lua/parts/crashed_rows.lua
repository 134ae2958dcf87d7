-- The rows of a task that crashed a worker while the task ran alone.

local MAX_CRASHES = 2 -- of a row, or of a task whose worker did not name a row
local MAX_SKIPPED = 16 -- rows; if more of them crash, the rows are not the cause

local NONE = {}

-- Returns the rows that crashed, with how often, and the numbers of those to leave out.
local function crashed_rows(task)
  if task.rest == '' then return NONE, NONE end
  local crashes, skipped = {}, {}
  if task.state == 'd' or task.state == 'f' then return crashes, skipped end
  for row, times in string.gmatch(task.rest, '(%d+):(%d+)') do
    crashes[#crashes + 1] = {row = row, times = tonumber(times)}
    if tonumber(times) >= MAX_CRASHES then skipped[#skipped + 1] = tonumber(row) end
  end
  return crashes, skipped
end

-- Counts one more crash of a row. Returns false if the task has too many such rows to go on.
local function blame_row(task, row)
  local crashes = {unpack((crashed_rows(task)))}
  local known
  for _, entry in ipairs(crashes) do
    if entry.row == row then known = entry end
  end
  if not known then
    known = {row = row, times = 0}
    crashes[#crashes + 1] = known
  end
  known.times = known.times + 1
  local texts = {}
  for at, entry in ipairs(crashes) do texts[at] = entry.row .. ':' .. entry.times end
  task.rest = table.concat(texts, ',')
  local _, skipped = crashed_rows(task)
  return #skipped <= MAX_SKIPPED
end
