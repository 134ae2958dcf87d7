"""Breaks the queue's Lua in known ways, one at a time, and tells which breaks the tests find.

    python tools/mutants.py [--only WORD] [--file SCRIPT ...] [--first N] [--jobs N]

Each mutant is tested in a copy of the tree; the working tree is not touched.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path("farm/queue/lua")
COPIED = (
    "farm",
    "tests/queue",
    "tests/store/s3_servers.py",
    "tests/fault_proxy.py",
    "infra/valkey",
    "pyproject.toml",
    "README.md",
)
TESTS = tuple(
    f"tests/queue/test_{name}.py"
    # The quick ones first: a run ends with the first test that fails.
    for name in (
        "lifecycle",
        "sessions",
        "scheduler",
        "placer",
        "submission",
        "deadlines",
        "rows",
        "suspects",
        "lanes",
        "left_open",
        "schema",
        "why",
        "control",
        "retry",
        "invalidate",
        "tallies",
        "removal",
        "busy_life",
        "fairness",
        "published_bugs",
        "published_bugs_python",
        "model",
        "durability",
    )
)
LIMIT_SECONDS = 600


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str


MUTANTS = (
    Mutant(
        "an older scheduler places workers while the newest does",
        "lead.lua",
        "  if later and left > 0 and left <= tonumber(ARGV[3]) then return 0 end\n",
        "",
    ),
    Mutant(
        "a scheduler that is gone keeps the workers for ever",
        "lead.lua",
        "if later and left > 0 and left",
        "if later and left",
    ),
    Mutant(
        "a scheduler that died before the clock was set back keeps the workers",
        "lead.lua",
        " and left <= tonumber(ARGV[3])",
        "",
    ),
    Mutant(
        "a machine that slept ends the sessions of living workers",
        "tick.lua",
        "if restarted or (gap > lease / 2 and silent < lease / 2) then",
        "if restarted then",
    ),
    Mutant(
        "a session that is silent gets one more lease at each look",
        "tick.lua",
        " and silent < lease / 2",
        "",
    ),
    Mutant(
        "lost tasks behind many with single failed pictures are not listed",
        "failures.lua",
        "#names == SEARCHED and after + SEARCHED or 0",
        "0",
    ),
    Mutant(
        "a list of jobs ends at a job that was removed",
        "jobs.lua",
        " or sequence_behind(ARGV[3])",
        " or 0",
    ),
    Mutant(
        "a command replaces an operator's",
        "set_command.lua",
        "if ARGV[3] and before ~= ARGV[3] then return before == ARGV[2] and 1 or 0 end\n",
        "",
    ),
    Mutant(
        "a job that is open counts as one that came in whole",
        "submitted.lua",
        " and state ~= 'o'",
        "",
    ),
    Mutant(
        "an append forgets its piece",
        "append.lua",
        "redis.call('HSET', P .. 'pieces:' .. job, piece, sha256)\n",
        "",
    ),
    Mutant(
        "an append takes a piece with other content for the same",
        "append.lua",
        "if known == sha256 then\n",
        "if known then\n",
    ),
    Mutant(
        "a closed job takes more tasks",
        "append.lua",
        "if head.state ~= 'o' then return",
        "if false then return",
    ),
    Mutant(
        "a close does not look for missing pieces",
        "close.lua",
        "if number(h[3]) < pieces then",
        "if false then",
    ),
    Mutant(
        "a close allows pieces beyond the number",
        "close.lua",
        "if number(h[3]) > 0 and number(h[4]) >= pieces then",
        "if false then",
    ),
    Mutant(
        "the idempotency key is not stored",
        "parts/submission.lua",
        "redis.call('HSET', P .. 'keys:' .. owner, key, job)",
        "",
    ),
    Mutant(
        "an idempotency key finds a job with other content",
        "parts/submission.lua",
        "if redis.call('HGET', P .. 'job:' .. known, 'fp') == fingerprint then",
        "if true then",
    ),
    Mutant(
        "a piece of a job that was put back makes tasks that are there",
        "append.lua",
        "if not there[task[1]] then tasks",
        "if true then tasks",
    ),
    Mutant(
        "two tasks of one call may have one number",
        "parts/submission.lua",
        "if seen[name] then\n",
        "if false then\n",
    ),
    Mutant(
        "work comes in before the file is rewritten",
        "parts/submission.lua",
        "return redis.call('HGET', P .. 'server', 'settled') == run_id",
        "return true",
    ),
    Mutant(
        "a submission needs no memory",
        "submit.lua",
        "#!lua\n",
        "#!lua flags=allow-oom\n",
    ),
    Mutant(
        "completing needs memory",
        "complete.lua",
        "#!lua flags=allow-oom\n",
        "#!lua\n",
    ),
    Mutant(
        "leasing needs memory",
        "lease.lua",
        "#!lua flags=allow-oom\n",
        "#!lua\n",
    ),
    Mutant(
        "anybody may complete a lease",
        "complete.lua",
        "if not holds(session, task) or task.attempt ~= entry",
        "if task.state ~= 'l' or task.attempt ~= entry",
    ),
    Mutant(
        "an old attempt may complete",
        "complete.lua",
        "or task.attempt ~= entry.attempt or (cancelled and task.lane == 0) then",
        "or (cancelled and task.lane == 0) then",
    ),
    Mutant(
        "a done task is done again",
        "complete.lua",
        "if task.state == 'd' then",
        "if false then",
    ),
    Mutant(
        "a cancelled job's task completes",
        "complete.lua",
        "if its.head.state == 'x' then",
        "if false then",
    ),
    Mutant(
        "a receipt need not account for every picture",
        "complete.lua",
        "and (told < least or told > task.pictures) then",
        "and told > task.pictures then",
    ),
    Mutant(
        "failed pictures are not counted",
        "complete.lua",
        "['if'] = its.failed,",
        "['if'] = 0,",
    ),
    Mutant(
        "as many failures as allowed fail the job",
        "parts/job_lifecycle.lua",
        "if number(h[1]) <= allowed then",
        "if number(h[1]) < allowed then",
    ),
    Mutant(
        "a completed task stays held",
        "complete.lua",
        "if #committed > 0 then forget(session, committed) end\n",
        "",
    ),
    Mutant(
        "what a task reported while it ran stays counted when it is done",
        "complete.lua",
        "rd = -its.running_done,",
        "",
    ),
    Mutant(
        "the order of completion is not kept",
        "complete.lua",
        "redis.call('RPUSH', P .. 'finished:' .. job,",
        "redis.call('LPUSH', P .. 'finished:' .. job,",
    ),
    Mutant(
        "an old attempt may fail",
        "fail.lua",
        "or task.attempt ~= tonumber(ARGV[4]) then",
        "then",
    ),
    Mutant(
        "anybody may fail a lease",
        "fail.lua",
        "if not holds(session, task) or task.attempt",
        "if task.state ~= 'l' or task.attempt",
    ),
    Mutant(
        "every crash counts",
        "parts/task_lifecycle.lua",
        "elseif kind == 'crash' and task.alone == BY_ROW then",
        "elseif kind == 'crash' then",
    ),
    Mutant(
        "a finalise task is blamed for a crash",
        "parts/task_lifecycle.lua",
        "if kind == 'crash' and not counted then kind = 'infra' end",
        "",
    ),
    Mutant(
        "no crash counts",
        "parts/task_lifecycle.lua",
        "elseif kind == 'crash' and task.alone == BY_ROW then",
        "elseif false then",
    ),
    Mutant(
        "three crashes are allowed",
        "parts/crashed_rows.lua",
        "local MAX_CRASHES = 2",
        "local MAX_CRASHES = 3",
    ),
    Mutant(
        "twenty-one losses are allowed",
        "parts/task_lifecycle.lua",
        "if task.losses >= MAX_LOSSES then\n      fail_task",
        "if task.losses > MAX_LOSSES then\n      fail_task",
    ),
    Mutant(
        "a crash does not make a task run alone",
        "parts/task_lifecycle.lua",
        "if kind == 'crash' then task.alone = BY_ROW end",
        "",
    ),
    Mutant(
        "a release costs an attempt",
        "parts/task_lifecycle.lua",
        "elseif kind == 'infra' then",
        "elseif kind == 'infra' or kind == 'release' then",
    ),
    Mutant(
        "late work is queued again",
        "parts/task_lifecycle.lua",
        "if head.late and counted then",
        "if false then",
    ),
    Mutant(
        "progress stays counted when a lease ends",
        "parts/leases.lua",
        "count(job, {rd = -held.done, rf = -held.failed})",
        "",
    ),
    Mutant(
        "a job is finalised before its last task has ended",
        "parts/job_lifecycle.lua",
        "if number(h[2]) ~= ended or",
        "if number(h[2]) > ended + 1 or",
    ),
    Mutant(
        "a job is finalised twice",
        "parts/job_lifecycle.lua",
        "or h[8] == tostring(number(h[7])) then return end",
        "then return end",
    ),
    Mutant(
        "a session that drains gets the finalise task",
        "parts/job_lifecycle.lua",
        "    and not redis.call('HGET', P .. 'session:' .. session, 'command')\n",
        "",
    ),
    Mutant(
        "a session that ended keeps its leases",
        "parts/session_lifecycle.lua",
        "give_back(job, head, name, task, kind, row, 'the worker",
        "do end (function() end)(job, head, name, task, kind, row, 'the worker",
    ),
    Mutant(
        "a lost session is taken for a crashed one",
        "parts/session_lifecycle.lua",
        "lost = 'infra'})[why]",
        "lost = 'crash'})[why]",
    ),
    Mutant(
        "what comes back goes to the end of the queue",
        "parts/ready_index.lua",
        "ready_prepend(job, task.lane, name)",
        "ready_append(job, task.lane, {name})",
    ),
    Mutant(
        "a crash alone blames no row",
        "parts/task_lifecycle.lua",
        "elseif kind == 'crash' and task.alone == BY_ROW and row ~= '' then",
        "elseif false then",
    ),
    Mutant(
        "a row is left out after its first crash",
        "parts/crashed_rows.lua",
        "if tonumber(times) >= MAX_CRASHES then",
        "if true then",
    ),
    Mutant(
        "a heartbeat forgets the row that runs",
        "heartbeat.lua",
        "at_work.done, at_work.failed, at_work.row))",
        "at_work.done, at_work.failed, ''))",
    ),
    Mutant(
        "what comes back to a paused job is found",
        "parts/ready_index.lua",
        "if not head.paused then activate(job, head, task.lane) end",
        "activate(job, head, task.lane)",
    ),
    Mutant(
        "an idle tenant earns credit",
        "parts/ready_index.lua",
        "local start = math.max(number(times[1]), floor)",
        "local start = number(times[1])",
    ),
    Mutant(
        "a newcomer starts at the class's clock although its lane lies behind",
        "parts/ready_index.lua",
        "if first[2] then floor = math.min(floor, tonumber(first[2])) end",
        "",
    ),
    Mutant(
        "the planner's view keeps cancelled work",
        "parts/ready_index.lua",
        "      count_backlog(lane .. ':' .. head.class, -tasks, -pictures)\n      deactivate",
        "      deactivate",
    ),
    Mutant(
        "an empty lane stays listed",
        "parts/ready_index.lua",
        "  redis.call('SREM', P .. 'lanes:' .. checkpoint_of(lane) .. ':' .. class, lane)\n",
        "",
    ),
    Mutant(
        "weights are ignored",
        "parts/fair_queue.lua",
        "times.set(tenant, start + cost / weights[tenant])",
        "times.set(tenant, start + cost)",
    ),
    Mutant(
        "shares are counted in tasks",
        "parts/fair_queue.lua",
        "times.set(tenant, start + cost / weights[tenant])",
        "times.set(tenant, start + 1 / weights[tenant])",
    ),
    Mutant(
        "the lower classes have no floor",
        "lease.lua",
        "local FLOOR = 0.1",
        "local FLOOR = 0",
    ),
    Mutant(
        "the lower classes have twice their floor",
        "lease.lua",
        "local FLOOR = 0.1",
        "local FLOOR = 0.2",
    ),
    Mutant(
        "bulk goes before normal",
        "lease.lua",
        "for class = URGENT, BULK do\n    if #queues[class].lanes > 0 then return",
        "for class = BULK, URGENT, -1 do\n    if #queues[class].lanes > 0 then return",
    ),
    Mutant(
        "a lease sent again grants again",
        "lease.lua",
        "if s[3] == request then",
        "if false then",
    ),
    Mutant(
        "a session with a command gets work",
        "lease.lua",
        "if s[2] or tonumber(",
        "if tonumber(",
    ),
    Mutant(
        "a session whose lease has ended gets work",
        "lease.lua",
        "if s[2] or tonumber(redis.call('ZSCORE', P .. 'sessions', session)) <= now then",
        "if s[2] then",
    ),
    Mutant(
        "company comes to a task that runs alone",
        "lease.lua",
        "if unpack_held(only[1]).alone ~= SHARED then return '[]' end",
        "",
    ),
    Mutant(
        "a task that runs alone goes to a busy session",
        "lease.lua",
        "    if holding + batch.tasks == 0 and room > 0 then",
        "    if room > 0 then",
    ),
    Mutant(
        "no session makes itself free for a task that runs alone",
        "lease.lua",
        "    redis.call('SADD', P .. 'draining', session)\n",
        "",
    ),
    Mutant(
        "every session makes itself free for one task that runs alone",
        "lease.lua",
        "(draining < suspects and draining",
        "(draining",
    ),
    Mutant(
        "tasks that run alone take every session",
        "lease.lua",
        "draining + isolated() < share)",
        "true)",
    ),
    Mutant(
        "a session that has finished a task that runs alone counts for ever",
        "lease.lua",
        "    if #held == 1 and unpack_held(held[1]).alone ~= SHARED then\n",
        "    if true then\n",
    ),
    Mutant(
        "tasks that run alone owe others nothing",
        "lease.lua",
        "  redis.call('HSET', P .. 'yielded', suspect.checkpoint, cost)\n",
        "",
    ),
    Mutant(
        "what others are owed is never paid",
        "lease.lua",
        "    redis.call('HDEL', P .. 'yielded', checkpoint)\n  end\nend\n",
        "  end\nend\n",
    ),
    Mutant(
        "a task that runs alone waits for others where there are none",
        "lease.lua",
        "if may and holding + batch.tasks == 0 and room > 0 then return run_alone() end\n",
        "",
    ),
    Mutant(
        "a job whose finalise task has ended stays as it is",
        "check_job.lua",
        "      redis.call('HSET', P .. 'job:' .. job, 's', head.state)\n",
        "",
    ),
    Mutant(
        "a task that an earlier farm listed to run alone is never found",
        "lease.lua",
        "      show_listed_task(job)\n",
        "",
    ),
    Mutant(
        "late work starts",
        "parts/fair_queue.lua",
        "      if overdue(head) then\n",
        "      if false then\n",
    ),
    Mutant(
        "room is not counted",
        "lease.lua",
        "return batch.pictures >= room or",
        "return room <= 0 or",
    ),
    Mutant(
        "a grant does not reach the inbox",
        "parts/grant_batch.lua",
        "    redis.call('RPUSH', P .. 'inbox:' .. session, unpack(keys))\n",
        "",
    ),
    Mutant(
        "a finalise task does not reach the inbox",
        "parts/leases.lua",
        "  redis.call('RPUSH', P .. 'inbox:' .. session, key)\n",
        "",
    ),
    Mutant(
        "an attempt is not counted",
        "parts/task_record.lua",
        "tostring(attempt + 1)",
        "attempt",
    ),
    Mutant(
        "a heartbeat extends nothing",
        "heartbeat.lua",
        "redis.call('ZADD', P .. 'sessions', now + ARGV[2], session)\n",
        "",
    ),
    Mutant(
        "a heartbeat reports cancelled work as held",
        "heartbeat.lua",
        "if task and head.state ~= 'x' and holds(session, task)",
        "if task and holds(session, task)",
    ),
    Mutant(
        "a heartbeat counts progress twice",
        "heartbeat.lua",
        "count(job, {rd = at_work.done - entry.done,",
        "count(job, {rd = at_work.done,",
    ),
    Mutant(
        "a heartbeat offers room that is granted already",
        "heartbeat.lua",
        "if unseen[key] then room = room - entry.pictures end",
        "",
    ),
    Mutant(
        "an unknown session may send a heartbeat",
        "heartbeat.lua",
        "if redis.call('EXISTS', P .. 'session:' .. session) == 0 then",
        "if false then",
    ),
    Mutant(
        "the tick gives sessions up at once after a restart",
        "tick.lua",
        "    redis.call('ZADD', P .. 'sessions', 'GT', now + lease, ends[at])\n",
        "",
    ),
    Mutant(
        "a lease grows with each restart of the server",
        "tick.lua",
        "tonumber(told[1]) or ends[at + 1]",
        "ends[at + 1]",
    ),
    Mutant(
        "the tick gives no session up",
        "tick.lua",
        "  end_session(session, 'lost')\n",
        "",
    ),
    Mutant(
        "the tick promotes nothing",
        "tick.lua",
        "    make_ready(job, head, name, task)\n",
        "",
    ),
    Mutant(
        "the tick promotes late work",
        "tick.lua",
        "if due and (task.lane == 0 or not head.late) then",
        "if due then",
    ),
    Mutant(
        "the tick forgets no deadline",
        "tick.lua",
        "  if head then dropped = dropped + expire_job(job, head) end\n",
        "",
    ),
    Mutant(
        "the tick keeps idempotency keys for ever",
        "parts/job_removal.lua",
        "    if h[2] then redis.call('HDEL', P .. 'keys:' .. h[1], h[2]) end\n",
        "",
    ),
    Mutant(
        "a stranger may cancel",
        "parts/job_record.lua",
        "if head and head.tenant == tenant_number(tenant) then return head end",
        "if head then return head end",
    ),
    Mutant(
        "an ended job is cancelled",
        "cancel.lua",
        "if not alive(head) then return head.state end\n",
        "",
    ),
    Mutant(
        "a cancelled job stays in the queue",
        "parts/job_lifecycle.lua",
        "  local lanes = drop_ready(job, head)\n  local h",
        "  local lanes = 1\n  local h",
    ),
    Mutant(
        "a cancelled job's running pictures stay counted",
        "parts/job_lifecycle.lua",
        "'rd', 0, ",
        "",
    ),
    Mutant(
        "a pause hides nothing",
        "pause.lua",
        "  hide_ready(job, head)\n",
        "",
    ),
    Mutant(
        "a retry runs every picture again",
        "parts/retries.lua",
        "      if task.state == 'd' then failed = select(2, receipt_pictures(task)) end\n",
        "",
    ),
    Mutant(
        "a retried picture stays counted as failed",
        "parts/retries.lua",
        "count(job, {n = tasks, nq = tasks, ['if'] = -pictures})",
        "count(job, {n = tasks, nq = tasks})",
    ),
    Mutant(
        "a job is finalised while its retry is still being queued",
        "parts/job_lifecycle.lua",
        "if h[1] ~= 'c' or h[9] then return end",
        "if h[1] ~= 'c' then return end",
    ),
    Mutant(
        "a cancelled job is retried",
        "retry.lua",
        "if head.state == 'x' then\n",
        "if false then\n",
    ),
    Mutant(
        "a tenant whose stored time is behind is served first",
        "parts/fair_queue.lua",
        "while more and not (front and known[front] <= last) do",
        "if not front and more then",
    ),
    Mutant(
        "a tenant keeps its turn after its grant",
        "parts/fair_queue.lua",
        "if front == tenant then front = nil end",
        "",
    ),
    Mutant(
        "times of tenants are never brought up to date",
        "parts/fair_queue.lua",
        "if #fresh > 0 then redis.call('ZADD', key, unpack(fresh)) end",
        "",
    ),
    Mutant(
        "a class's clock stands still",
        "parts/fair_queue.lua",
        "if start > times.of('now') then times.set('now', start) end",
        "",
    ),
    Mutant(
        "the first task of a job stays queued when it is taken",
        "parts/fair_queue.lua",
        "redis.call('HDEL', P .. 'job:' .. job, 'h' .. lane)",
        "",
    ),
    Mutant(
        "taken tasks stay queued",
        "parts/fair_queue.lua",
        "if taken > 0 then redis.call('LPOP', key, taken) end",
        "",
    ),
    Mutant(
        "a job's second block of tasks is its first again",
        "parts/fair_queue.lua",
        "listed = listed + #fresh",
        "listed = 0",
    ),
    Mutant(
        "a job without tasks stays listed",
        "parts/fair_queue.lua",
        "emptied[#emptied + 1] = jobs[at]",
        "",
    ),
    Mutant(
        "a tenant without tasks stays listed",
        "parts/fair_queue.lua",
        "    retire(lane, class, tenant)\n",
        "",
    ),
    Mutant(
        "a tenant's jobs end with its first block of them",
        "parts/fair_queue.lua",
        "if at > #jobs and not gone then",
        "if at > #jobs and not page then",
    ),
    Mutant(
        "a started task forgets its crashes and losses",
        "parts/task_record.lua",
        ".. task.attempt .. '|' .. blame .. '|' .. alone",
        ".. task.attempt .. '|||' .. alone",
    ),
    Mutant(
        "a started task forgets the rows that crashed",
        "parts/task_record.lua",
        ".. session .. '|' .. rest",
        ".. session .. '|'",
    ),
    Mutant(
        "a session forgets that its task runs alone",
        "parts/task_record.lua",
        "pack_held(task.attempt, task.alone, task.pictures",
        "pack_held(task.attempt, 0, task.pictures",
    ),
    Mutant(
        "a heartbeat never makes a session shorter",
        "heartbeat.lua",
        "redis.call('ZADD', P .. 'sessions', now + ARGV[2], session)",
        "redis.call('ZADD', P .. 'sessions', 'GT', now + ARGV[2], session)",
    ),
    Mutant(
        "a stranger invalidates a job's pictures",
        "invalidate.lua",
        "if refused then return refused end",
        "head = read_job(job)",
    ),
    Mutant(
        "the pictures of a running job are invalidated",
        "invalidate.lua",
        "if head.state ~= 'd' and head.state ~= 'f' then",
        "if false then",
    ),
    Mutant(
        "pictures are invalidated after the deadline",
        "invalidate.lua",
        "if overdue(head) then return",
        "if false then return",
    ),
    Mutant(
        "a deadline that passes after a job's end is not noticed",
        "parts/job_record.lua",
        "return head.late or (head.deadline ~= nil and head.deadline <= now)",
        "return head.late",
    ),
    Mutant(
        "a task that ran again since is invalidated",
        "invalidate.lua",
        "if its and its.state ~= 'f' then",
        "if false then",
    ),
    Mutant(
        "a generation that failed is not asked for the pictures of an earlier one",
        "invalidate.lua",
        "  failed.pictures = pictures\n",
        "",
    ),
    Mutant(
        "a job that could not be finalised in time never is",
        "retry.lua",
        "if overdue(head) and not all_but_finalised then",
        "if overdue(head) then",
    ),
    Mutant(
        "a task that is not done is invalidated",
        "invalidate.lua",
        "if not task or task.state ~= 'd' then",
        "if not task then",
    ),
    Mutant(
        "more pictures are left than a task has",
        "invalidate.lua",
        "if left > done then",
        "if false then",
    ),
    Mutant(
        "an invalidated task's receipt counts its old pictures",
        "invalidate.lua",
        "change_receipt(task, left, lost)",
        "change_receipt(task, done, lost)",
    ),
    Mutant(
        "an invalidated task's receipt counts no failed pictures",
        "invalidate.lua",
        "change_receipt(task, left, lost)",
        "change_receipt(task, left, 0)",
    ),
    Mutant(
        "an invalidated task forgets its numerics class",
        "parts/receipt.lua",
        "task.rest = class .. '|'",
        "task.rest = '0|'",
    ),
    Mutant(
        "invalidated pictures stay counted as done",
        "invalidate.lua",
        "count(job, {id = -gone, ['if'] = gone})",
        "count(job, {['if'] = gone})",
    ),
    Mutant(
        "invalidated pictures are not counted as failed",
        "invalidate.lua",
        "count(job, {id = -gone, ['if'] = gone})",
        "count(job, {id = -gone})",
    ),
    Mutant(
        "invalidated pictures are not retried",
        "invalidate.lua",
        "  redis.call('RPUSH', failures, name)\n",
        "",
    ),
    Mutant(
        "a task that is invalidated twice is retried twice",
        "invalidate.lua",
        "and not redis.call('LPOS', failures, name) then",
        "then",
    ),
    Mutant(
        "a task with all its pictures is retried",
        "invalidate.lua",
        "if lost > 0 and not",
        "if not",
    ),
    Mutant(
        "a second invalidation counts the first again",
        "invalidate.lua",
        "local gone = done - left",
        "local gone = task.pictures - left",
    ),
    Mutant(
        "what fails while a retry is being queued is retried with it",
        "parts/retries.lua",
        "math.min(MAX_ROWS, due)",
        "MAX_ROWS",
    ),
    Mutant(
        "a deadline leaves a retry going on",
        "parts/job_lifecycle.lua",
        "'dx', 1)\n  end_retry(job)",
        "'dx', 1)",
    ),
    Mutant(
        "a retry for a reason is of everything",
        "parts/retries.lua",
        "return not reason or failed_by(task)",
        "return true or failed_by(task)",
    ),
    Mutant(
        "what failed for another reason is forgotten",
        "parts/retries.lua",
        "      redis.call('RPUSH', list, name)\n",
        "",
    ),
    Mutant(
        "a second retry is for the first one's reason",
        "parts/job_lifecycle.lua",
        "'rt', 'rr')\n  redis.call('SREM'",
        "'rt')\n  redis.call('SREM'",
    ),
    Mutant(
        "a reason that nothing failed for is taken",
        "retry.lua",
        "if not found then",
        "if false then",
    ),
    Mutant(
        "a task with too many crashing rows did not crash",
        "parts/task_lifecycle.lua",
        "      task.crashes = MAX_CRASHES\n",
        "",
    ),
    Mutant(
        "what loses its workers again and again keeps its neighbours",
        "parts/task_lifecycle.lua",
        "      task.alone = ISOLATED\n",
        "",
    ),
    Mutant(
        "the first loss isolates a task",
        "parts/task_lifecycle.lua",
        "task.losses >= MOST_SHARED_LOSSES then",
        "task.losses >= 1 then",
    ),
    Mutant(
        "an isolated task that is lost runs with others again",
        "parts/task_lifecycle.lua",
        "if counted and task.alone == SHARED and",
        "if counted and task.alone ~= SHARED and",
    ),
    Mutant(
        "a pause leaves the tasks that run alone in sight",
        "parts/ready_index.lua",
        "    redis.call('ZREM', suspects_key(checkpoint), job)\n  end)\nend\n",
        "  end)\nend\n",
    ),
    Mutant(
        "what comes back to a paused job is in sight if it runs alone",
        "parts/ready_index.lua",
        "if not head.paused then show_suspects(job, head, checkpoint) end",
        "show_suspects(job, head, checkpoint)",
    ),
    Mutant(
        "a resume forgets the tasks that run alone",
        "parts/ready_index.lua",
        "      show_suspects(job, head, checkpoint)\n    end\n  end)",
        "    end\n  end)",
    ),
    Mutant(
        "tasks that run alone stay when their job ends",
        "parts/ready_index.lua",
        "    redis.call('UNLINK', alone_key(job, checkpoint))\n",
        "",
    ),
    Mutant(
        "a job of tasks that run alone stays listed when it ends",
        "parts/ready_index.lua",
        "    redis.call('ZREM', suspects_key(checkpoint), job)\n    redis.call('UNLINK'",
        "    redis.call('UNLINK'",
    ),
    Mutant(
        "a task that runs alone is granted again and again",
        "parts/ready_index.lua",
        "  redis.call('LREM', key, 1, name)\n",
        "",
    ),
    Mutant(
        "a job whose last task that runs alone was granted stays listed",
        "parts/ready_index.lua",
        "  if redis.call('EXISTS', key) == 0 then redis",
        "  if false then redis",
    ),
    Mutant(
        "tasks that run alone are seen for any class",
        "lease.lua",
        "    elseif head.class <= lowest then\n",
        "    else\n",
    ),
    Mutant(
        "a list of tasks that run alone whose job is gone stops every lease",
        "lease.lua",
        "if not head or not alive(head) then\n      redis.call('ZREM'",
        "if head and not alive(head) then\n      redis.call('ZREM'",
    ),
    Mutant(
        "a job that is gone stays listed with tasks that run alone",
        "lease.lua",
        "      redis.call('ZREM', suspects_key(checkpoint), job)\n      show",
        "      show",
    ),
    Mutant(
        "a tenant may work in any number of lanes",
        "parts/lane_use.lua",
        "  return lanes <= MAX_TENANT_LANES\n",
        "  return true\n",
    ),
    Mutant(
        "a lane that a tenant works in counts again",
        "parts/lane_use.lua",
        "if not lane or redis.call('HEXISTS', busy, lane) == 0 then lanes = lanes + 1 end",
        "lanes = lanes + 1",
    ),
    Mutant(
        "a job that has ended keeps its lanes busy",
        "parts/job_lifecycle.lua",
        "  leave_lanes(job, redis.call('HGET', P .. 'job:' .. job, 't'))\n",
        "",
    ),
    Mutant(
        "the lanes of a retry are not busy",
        "retry.lua",
        "reuse_lanes(job, head.tenant)\n",
        "",
    ),
    Mutant(
        "a lane is never forgotten",
        "parts/job_removal.lua",
        "  local lanes = forget_lanes(job)\n",
        "  local lanes = 0\n",
    ),
    Mutant(
        "a lane is forgotten with the first of its jobs",
        "parts/lane_use.lua",
        "    if lower(P .. 'lane:jobs', lane) then forget_lane(lane) end",
        "    forget_lane(lane)",
    ),
    Mutant(
        "a lane from before lanes were counted is forgotten",
        "parts/lane_use.lua",
        "  if redis.call('HEXISTS', key, lane) == 0 then return false end\n",
        "",
    ),
    Mutant(
        "the next job of a lane from before lanes were counted is its first",
        "parts/lane_use.lua",
        "    if redis.call('HEXISTS', P .. 'lane:jobs', lane) == 1 then",
        "    if true then",
    ),
    Mutant(
        "the lanes of a job that was put back are not its own",
        "restore.lua",
        "  use_lanes(job, head.tenant, lanes)\n",
        "",
    ),
    Mutant(
        "a job that was put back costs nothing",
        "restore.lua",
        "      counts.k = counts.k + (first and task[4] or 0)\n",
        "",
    ),
    Mutant(
        "a job costs nothing",
        "parts/submission.lua",
        "i = total, k = cost, rj",
        "i = total, rj",
    ),
    Mutant(
        "a tick ends any number of lanes for their deadlines",
        "tick.lua",
        "  if dropped > MAX_DROPPED then break end\n  local head",
        "  local head",
    ),
    Mutant(
        "a tick forgets any number of lanes",
        "tick.lua",
        "  if forgotten > MAX_DROPPED then break end\n  forgotten = forgotten + forget_job(job)\n",
        "  forgotten = forgotten + forget_job(job)\n",
    ),
    Mutant(
        "pictures that expire do not count as such",
        "parts/job_lifecycle.lua",
        "ix = pictures",
        "ix = 0",
    ),
    Mutant(
        "a task that expires does not count its pictures as such",
        "parts/task_lifecycle.lua",
        ", ix = task.pictures",
        "",
    ),
    Mutant(
        "a lease ends any number of lanes",
        "parts/fair_queue.lua",
        "while dropped <= MAX_DROPPED do",
        "while true do",
    ),
    Mutant(
        "a lease ends any number of lanes of tasks that run alone",
        "lease.lua",
        "if dropped <= MAX_DROPPED then dropped = dropped + expire_job(job, head) end",
        "expire_job(job, head)",
    ),
    Mutant(
        "a lane that was forgotten stops a check",
        "check_lanes.lua",
        "  if not checkpoint_of(lane) then return end\n",
        "",
    ),
    Mutant(
        "an open job stays open for ever",
        "tick.lua",
        "    dropped = dropped + cancel_job(job, head,",
        "    dropped = dropped + select('#', job,",
    ),
    Mutant(
        "a job that was left open does not say so",
        "parts/job_lifecycle.lua",
        "  end_job(job, 'x', reason)\n",
        "  end_job(job, 'x')\n",
    ),
    Mutant(
        "a piece does not keep its job open",
        "append.lua",
        "redis.call('ZADD', P .. 'opened', now, job)\n",
        "",
    ),
    Mutant(
        "a piece that is sent again does not keep its job open",
        "append.lua",
        "  redis.call('ZADD', P .. 'opened', 'XX', now, job)",
        "",
    ),
    Mutant(
        "a job that is opened again is not kept open",
        "open.lua",
        "  redis.call('ZADD', P .. 'opened', 'XX', now, known[1])\n",
        "",
    ),
    Mutant(
        "a piece that is sent again opens a closed job",
        "append.lua",
        "'opened', 'XX', now",
        "'opened', now",
    ),
    Mutant(
        "a closed job counts as open",
        "close.lua",
        "redis.call('ZREM', P .. 'opened', job)\n",
        "",
    ),
    Mutant(
        "a cancelled job counts as open",
        "parts/job_lifecycle.lua",
        "  redis.call('ZREM', P .. 'opened', job)\n",
        "",
    ),
    Mutant(
        "a wait goes by a clock that was set back",
        "tick.lua",
        "  waiting[#waiting + 1] = key\n",
        "",
    ),
    Mutant(
        "a wait that has begun is cut short",
        "tick.lua",
        "'(' .. now + LONGEST_WAIT, 'inf'",
        "'(' .. now, 'inf'",
    ),
    Mutant(
        "a lease goes by a clock that was set back",
        "tick.lua",
        "      redis.call('ZINCRBY', P .. 'sessions', -ahead, session)\n",
        "",
    ),
    Mutant(
        "a heartbeat since the clock was set back does not count",
        "tick.lua",
        "    if ahead > 0 then\n",
        "    if true then\n",
    ),
    Mutant(
        "what was made of a cancelled job is lost",
        "complete.lua",
        "  local cancelled = its.head.state == 'x'\n",
        "  if its.head.state == 'x' then return {'cancelled', '', ''} end\n  local cancelled\n",
    ),
    Mutant(
        "a receipt of a cancelled job must account for every picture",
        "complete.lua",
        "its.head.state == 'x' and 0 or task and",
        "task and",
    ),
    Mutant(
        "a cancelled task that is done counts as both",
        "complete.lua",
        "nc = -its.cancelled, ",
        "",
    ),
    Mutant(
        "a cancelled task that is done counts as leased",
        "complete.lua",
        "nl = its.cancelled - tasks",
        "nl = -tasks",
    ),
    Mutant(
        "data of a newer farm are taken for one's own",
        "parts/prelude.lua",
        "if tonumber(redis.call('HGET', P .. 'server', 'schema') or 0) > SCHEMA then",
        "if false then",
    ),
    Mutant(
        "a job's wait is counted in the first bucket",
        "parts/tallies.lua",
        "  while WAITS[bucket] and waited > WAITS[bucket] * 1000 do bucket = bucket + 1 end\n",
        "",
    ),
    Mutant(
        "a job's wait is counted without its length",
        "parts/tallies.lua",
        "  tally('waited-ms:' .. class, waited)\n",
        "",
    ),
    Mutant(
        "a tenant pays for pictures that failed",
        "complete.lua",
        "math.ceil(task.cost * entry.done / task.pictures)",
        "task.cost",
    ),
    Mutant(
        "pictures that failed are not counted",
        "complete.lua",
        "  tally('failed:row', its.failed)\n",
        "",
    ),
    Mutant(
        "of a tenant's jobs in one call the last one counts",
        "complete.lua",
        "got[tenant] = (got[tenant] or 0) + its.done",
        "got[tenant] = its.done",
    ),
    Mutant(
        "a call that grants several tasks counts as one",
        "parts/grant_batch.lua",
        "tally('leases', batch.tasks)",
        "tally('leases', 1)",
    ),
    Mutant(
        "no job's wait is counted",
        "parts/grant_batch.lua",
        "      tally_wait(its.head.class, its.head.created)\n",
        "",
    ),
    Mutant(
        "what a drained session held counts as lost",
        "parts/session_lifecycle.lua",
        "    if why ~= 'drain' then tally(",
        "    if true then tally(",
    ),
    Mutant(
        "a session that ends twice is counted twice",
        "parts/session_lifecycle.lua",
        "  if redis.call('EXISTS', P .. 'session:' .. session) == 1 then\n",
        "  if true then\n",
    ),
    Mutant(
        "a session that ended is still listed as one that took a task to run alone",
        "parts/session_lifecycle.lua",
        "  redis.call('SREM', P .. 'isolated', session)\n",
        "",
    ),
    Mutant(
        "finalise tasks that come back are counted",
        "parts/task_lifecycle.lua",
        "  if counted then tally('returned:'",
        "  if true then tally('returned:'",
    ),
    Mutant(
        "pictures of failed tasks are not counted",
        "parts/task_lifecycle.lua",
        "  tally('failed:' .. kind, task.pictures)\n",
        "",
    ),
    Mutant(
        "pictures that expire when they come back are not counted",
        "parts/task_lifecycle.lua",
        "  tally('failed:expired', task.pictures)\n",
        "",
    ),
    Mutant(
        "pictures that expire in the queue are not counted",
        "parts/job_lifecycle.lua",
        "  tally('failed:expired', pictures)\n",
        "",
    ),
    Mutant(
        "no job is removed when its time is over",
        "parts/job_lifecycle.lua",
        "  start_keeping(job)\n",
        "",
    ),
    Mutant(
        "nothing notes that a job was cancelled",
        "parts/job_lifecycle.lua",
        "  redis.call('SADD', P .. 'cancelled', job)\n",
        "",
    ),
    Mutant(
        "a cancelled job is removed while its workers store",
        "parts/job_removal.lua",
        "h[1] == 'x' and math.max(now, number(h[2]) + SETTLED) or now",
        "now",
    ),
    Mutant(
        "a removed job is still to be kept",
        "parts/job_removal.lua",
        "  redis.call('ZREM', P .. 'keeping', owned_job(job, tenant))\n",
        "",
    ),
    Mutant(
        "a job that was forgotten is still to be noted as cancelled",
        "parts/job_removal.lua",
        "  redis.call('SREM', P .. 'cancelled', job)\n",
        "",
    ),
    Mutant(
        "what the store says removes another tenant's job",
        "remove.lua",
        "(ARGV[3] ~= '1' or read_job(job))",
        "ARGV[3] ~= '1'",
    ),
    Mutant(
        "a job that runs is removed",
        "remove.lua",
        "if head and alive(head) then",
        "if false then",
    ),
    Mutant(
        "a job that is retried is removed when its first time is over",
        "retry.lua",
        "redis.call('ZREM', P .. 'keeping', owned_job(job, head.tenant))\n",
        "",
    ),
    Mutant(
        "a job whose time is over is forgotten but not removed",
        "tick.lua",
        "forgotten + remove_job(job, tenant)",
        "forgotten + forget_job(job)",
    ),
    Mutant(
        "objects are deleted while workers store",
        "removals.lua",
        "'-inf', now, 'BYSCORE'",
        "'-inf', 'inf', 'BYSCORE'",
    ),
    Mutant(
        "a session that is told to drain keeps others from tasks that run alone",
        "set_command.lua",
        "  redis.call('SREM', P .. 'draining', ARGV[1])\n",
        "",
    ),
    Mutant(
        "lower classes go before a task that runs alone",
        "lease.lua",
        "  for class = URGENT, suspect.head.class do\n",
        "  for class = URGENT, BULK do\n",
    ),
    Mutant(
        "the oldest ready job is the last one that is looked at",
        "tallies.lua",
        "if created and (not found or created < found) then",
        "if created then",
    ),
)  # fmt: skip


def copy_tree(to: Path) -> None:
    for name in COPIED:
        source, target = ROOT / name, to / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, target)


def passes(tests: list[str], mutant: Mutant | None = None) -> bool:
    """Whether the tests pass in a copy of the tree; a run that hangs does not."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        if mutant is not None:
            break_script(tree, mutant)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        try:
            ended = subprocess.run(
                command,
                cwd=tree,
                env={
                    **os.environ,
                    "PYTHONPATH": str(tree),
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "FARM_NO_SHRINK": "1",
                    "FARM_LIVES": "100",
                },
                capture_output=True,
                timeout=LIMIT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
        return ended.returncode == 0


def break_script(tree: Path, mutant: Mutant) -> None:
    """Change one script of a tree; the text to change must stand in it exactly once."""
    path = tree / SCRIPTS / mutant.file
    source = path.read_text(encoding="utf-8")
    if source.count(mutant.old) != 1:
        raise SystemExit(
            f"{mutant.name}: its text stands {source.count(mutant.old)} times "
            f"in {mutant.file}, not once"
        )
    path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")


def survives(mutant: Mutant, tests: list[str]) -> bool:
    """Whether no test finds it; prints the verdict."""
    start = time.monotonic()
    alive = passes(tests, mutant)
    seconds = time.monotonic() - start
    print(f"{'SURVIVES' if alive else 'found':8} {seconds:5.0f} s  {mutant.name}", flush=True)
    return alive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="mutants whose name has this word")
    parser.add_argument("--file", nargs="+", default=[], help="mutants of these scripts or parts")
    parser.add_argument("--first", type=int, default=0, help="how many of them to leave out")
    parser.add_argument("--jobs", type=int, default=1, help="how many to test at a time")
    parser.add_argument("--tests", nargs="+", default=list(TESTS))
    arguments = parser.parse_args()
    files = {name.removesuffix(".lua") for name in arguments.file}
    if unknown := files - {mutant.file.removesuffix(".lua") for mutant in MUTANTS}:
        parser.error(f"there are no mutants of {', '.join(sorted(unknown))}")
    chosen = [
        mutant
        for mutant in MUTANTS
        if arguments.only in mutant.name
        and (not files or mutant.file.removesuffix(".lua") in files)
    ][arguments.first :]
    if not passes(arguments.tests):
        raise SystemExit("the tests fail without any mutant: nothing would be learnt from them")
    with ThreadPoolExecutor(arguments.jobs) as pool:
        survivors = sum(pool.map(lambda mutant: survives(mutant, arguments.tests), chosen))
    found = len(chosen) - survivors
    print(f"{found} of {len(chosen)} mutants found ({found / max(len(chosen), 1):.0%})")
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
