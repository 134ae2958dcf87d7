-- What has happened since the queue began, for the farm's metrics: numbers that only grow.
--
-- requires: prelude
--
--   tallies   hash: name -> how often, or how much. Names:
--     leases, leases-lost                     tasks granted; held by a session that did not drain
--     returned:<row|crash|infra|release>      leases that ended without a receipt
--     failed:<row|crash|infra|expired>        pictures that will not be made
--     sessions:<crash|drain|lost>             ended, and why
--     pictures:<tenant>, row-steps:<tenant>   of done tasks; the tenant as its number
--     waited:<class>:<bucket>, waited-ms:<class>   jobs that began, by how long they had waited

-- In seconds; farm/queue/tallies.py has the same ones. The last bucket has no bound.
local WAITS = {0.1, 0.5, 1, 5, 15, 60, 300, 1800, 7200}

local function tally(name, by)
  if by ~= 0 then redis.call('HINCRBY', P .. 'tallies', name, by) end
end

-- A job begins that was submitted at `created` (ms).
local function tally_wait(class, created)
  local waited = math.max(0, now - created)
  local bucket = 1
  while WAITS[bucket] and waited > WAITS[bucket] * 1000 do bucket = bucket + 1 end
  tally('waited:' .. class .. ':' .. bucket, 1)
  tally('waited-ms:' .. class, waited)
end
