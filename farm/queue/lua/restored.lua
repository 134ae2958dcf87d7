#!lua
-- The end of putting a job back: OPEN -> OPEN, QUEUED, or DONE or FAILED
--
-- requires: prelude, job_record, job_lifecycle, submission
--
-- ARGV  job, deadline (ms) or empty, renders rejected, JSON list of pieces that are known,
--       empty to leave it open, "close", or when it ended (ms)
local job = ARGV[1]
local head = read_job(job)
if not head or head.state ~= 'o' then
  return refuse('CONFLICT', 'job ' .. job .. ' is not open')
end
if ARGV[2] ~= '' then
  redis.call('HSET', P .. 'job:' .. job, 'dl', ARGV[2])
  redis.call('ZADD', P .. 'deadlines', ARGV[2], job)
end
redis.call('HSET', P .. 'job:' .. job, 'rj', ARGV[3])
local pieces, last = cjson.decode(ARGV[4]), 0
for _, piece in ipairs(pieces) do
  redis.call('HSET', P .. 'pieces:' .. job, piece, '') -- its content is compared in the store
  last = math.max(last, piece)
end
redis.call('HSET', P .. 'job:' .. job, 'pn', #pieces, 'pm', last)
if ARGV[5] ~= '' then redis.call('ZREM', P .. 'opened', job) end
if ARGV[5] == 'close' then
  close_job(job, #pieces)
elseif ARGV[5] ~= '' then
  redis.call('HSET', P .. 'job:' .. job, 's', 'c', 'cl', #pieces, 'fz', head.generation)
  finalise_job(job)
  redis.call('HSET', P .. 'job:' .. job, 'e', ARGV[5])
  redis.call('ZADD', P .. 'ended', ARGV[5], job)
end
return 1
