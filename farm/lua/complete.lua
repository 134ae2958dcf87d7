#!lua flags=allow-oom
-- with: ready settle
-- LEASED -> DONE, if the session still holds the task.
--
-- ARGV  session, job, task, attempt, pictures done, pictures failed, receipt, numerics class
--
-- Returns {outcome, winner's receipt or empty, its numerics class}:
--   committed  the task is done
--   already    it was done before; the receipt is the winner's, which is kept
--   cancelled  its job was cancelled
--   stale      the session does not hold it any more; it runs elsewhere, will, or has failed
local session, job, name = ARGV[1], ARGV[2], ARGV[3]
local done, failed = tonumber(ARGV[5]), tonumber(ARGV[6])
local head = read_job(job)
local task = head and read_task(job, name)
if not task then return {'stale', '', ''} end
if task.state == 'd' then
  local class, receipt = string.match(task.rest, '^(%d+)|(.*)$')
  return {'already', receipt, redis.call('HGET', P .. 'numerics:texts', class)}
end
if head.state == 'x' then
  let_go(session, job, name, head)
  return {'cancelled', '', ''}
end
if task.state ~= 'l' or task.session ~= session or task.attempt ~= tonumber(ARGV[4]) then
  return {'stale', '', ''}
end
if done + failed ~= task.pictures and task.lane ~= 0 then
  return refuse('INVALID', 'the receipt tells of ' .. done + failed .. ' pictures; the task has '
    .. task.pictures)
end
let_go(session, job, name, head)
task.state = 'd'
task.session = ''
task.rest = intern('numerics', ARGV[8]) .. '|' .. ARGV[7]
write_task(job, name, task)
if task.lane == 0 then
  local h = redis.call('HMGET', P .. 'job:' .. job, 'if', 'i', 'o')
  local allowed = cjson.decode(h[3]).max_failed or 0
  if number(h[1]) > allowed then
    end_job(job, 'f', h[1] .. ' of ' .. h[2] .. ' pictures failed; at most ' .. allowed
      .. ' were allowed')
  else
    end_job(job, 'd')
  end
else
  count(job, {nl = -1, nd = 1, lp = -task.pictures, id = done, ['if'] = failed})
  redis.call('RPUSH', P .. 'finished:' .. job, name)
  if failed > 0 then redis.call('RPUSH', P .. 'failures:' .. job, name) end
  event(job, 'task')
  settle_job(job, session)
end
return {'committed', '', ''}
