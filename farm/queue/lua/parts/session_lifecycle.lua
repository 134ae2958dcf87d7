-- How a session ends.
--
-- requires: prelude, job_record, task_record, leases, job_lifecycle, task_lifecycle, tallies
--
--   sessions         sorted set: session -> end of its leases (ms)
--   session:<s>      hash: worker, checkpoints, info, room, seen, lease (ms), stats, told,
--                    command, and of its last lease: request, granted, turn

-- Everything that the session holds goes back. Returns how many tasks that were.
local function end_session(session, why)
  local held = redis.call('HGETALL', P .. 'held:' .. session)
  if redis.call('EXISTS', P .. 'session:' .. session) == 1 then
    tally('sessions:' .. why, 1)
    if why ~= 'drain' then tally('leases-lost', #held / 2) end
  end
  redis.call('DEL', P .. 'inbox:' .. session)
  local kind = ({crash = 'crash', drain = 'release', lost = 'infra'})[why]
  for at = 1, #held, 2 do
    local job, name = split_key(held[at])
    local head = read_job(job)
    local row = let_go(session, job, name, head)
    local task = head and read_task(job, name)
    if task and head.state ~= 'x' and holds(session, task) then
      give_back(job, head, name, task, kind, row, 'the worker ended (' .. why .. ')')
      finalise_when_ended(job, nil)
    end
  end
  redis.call('DEL', P .. 'session:' .. session, P .. 'held:' .. session)
  redis.call('ZREM', P .. 'sessions', session)
  redis.call('SREM', P .. 'draining', session)
  redis.call('SREM', P .. 'isolated', session)
  return #held / 2
end
