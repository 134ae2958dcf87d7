"""Breaks the queue's Lua in known ways, one at a time, and tells which breaks the tests find.

    python tools/mutants.py [--only WORD] [--first N] [--tests PATH ...]

Each mutant is tested in a copy of the tree; the working tree is not touched.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("farm", "tests/queue", "pyproject.toml", "README.md")
TESTS = tuple(
    f"tests/queue/test_{name}.py"
    # The quick ones first: a run ends with the first test that fails.
    for name in (
        "lifecycle",
        "rows",
        "why",
        "control",
        "intake",
        "retry",
        "spoil",
        "fairness",
        "published_bugs",
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
        "an append forgets its piece",
        "append.lua",
        "redis.call('HSET', P .. 'pieces:' .. job, piece, sha256)\n",
        "",
    ),
    Mutant(
        "an append takes a piece with other content for the same",
        "append.lua",
        "if known == sha256 then return 0 end",
        "if known then return 0 end",
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
        "common/intake.lua",
        "redis.call('HSET', P .. 'keys:' .. owner, key, job)",
        "",
    ),
    Mutant(
        "an idempotency key finds a job with other content",
        "common/intake.lua",
        "if redis.call('HGET', P .. 'job:' .. known, 'fp') == fingerprint then",
        "if true then",
    ),
    Mutant(
        "two tasks may have one number",
        "common/intake.lua",
        "if record then return refuse_again(name) end",
        "",
    ),
    Mutant(
        "two tasks of one call may have one number",
        "common/intake.lua",
        "if seen[name] then return refuse_again(name) end",
        "",
    ),
    Mutant(
        "work comes in before the file is rewritten",
        "common/intake.lua",
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
        "or task.session ~= session or",
        "or",
    ),
    Mutant(
        "an old attempt may complete",
        "complete.lua",
        "or task.attempt ~= entry.attempt then",
        "then",
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
        "a receipt need not tell of every picture",
        "complete.lua",
        "and task.lane ~= 0 and told ~= task.pictures then",
        "and false then",
    ),
    Mutant(
        "failed pictures are not counted",
        "complete.lua",
        "['if'] = its.failed,",
        "['if'] = 0,",
    ),
    Mutant(
        "as many failures as allowed fail the job",
        "complete.lua",
        "if number(h[1]) > allowed then",
        "if number(h[1]) >= allowed then",
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
        "or task.session ~= session or",
        "or",
    ),
    Mutant(
        "every crash counts",
        "common/settle.lua",
        "elseif kind == 'crash' and task.alone == 1 then",
        "elseif kind == 'crash' then",
    ),
    Mutant(
        "a finalise task is blamed for a crash",
        "common/settle.lua",
        "if kind == 'crash' and not counted then kind = 'infra' end",
        "",
    ),
    Mutant(
        "no crash counts",
        "common/settle.lua",
        "elseif kind == 'crash' and task.alone == 1 then",
        "elseif false then",
    ),
    Mutant(
        "three crashes are allowed",
        "common/settle.lua",
        "local MAX_CRASHES = 2",
        "local MAX_CRASHES = 3",
    ),
    Mutant(
        "twenty-one losses are allowed",
        "common/settle.lua",
        "if task.losses >= MAX_LOSSES then\n      fail_task",
        "if task.losses > MAX_LOSSES then\n      fail_task",
    ),
    Mutant(
        "a crash does not make a task run alone",
        "common/settle.lua",
        "if kind == 'crash' then task.alone = 1 end",
        "",
    ),
    Mutant(
        "a release costs an attempt",
        "common/settle.lua",
        "elseif kind == 'infra' then",
        "elseif kind == 'infra' or kind == 'release' then",
    ),
    Mutant(
        "late work is queued again",
        "common/settle.lua",
        "if head.late and counted then",
        "if false then",
    ),
    Mutant(
        "progress stays counted when a lease ends",
        "common/settle.lua",
        "count(job, {rd = -held.done, rf = -held.failed})",
        "",
    ),
    Mutant(
        "a job is finalised before its last task has ended",
        "common/settle.lua",
        "if number(h[2]) ~= ended or",
        "if number(h[2]) > ended + 1 or",
    ),
    Mutant(
        "a job is finalised twice",
        "common/settle.lua",
        "or h[8] == tostring(number(h[7])) then return end",
        "then return end",
    ),
    Mutant(
        "a session that drains gets the finalise task",
        "common/settle.lua",
        "    and not redis.call('HGET', P .. 'session:' .. session, 'command')\n",
        "",
    ),
    Mutant(
        "a session that ended keeps its leases",
        "common/settle.lua",
        "give_back(job, head, name, task, kind, row, 'the worker",
        "do end (function() end)(job, head, name, task, kind, row, 'the worker",
    ),
    Mutant(
        "a lost session is taken for a crashed one",
        "common/settle.lua",
        "lost = 'infra'})[why]",
        "lost = 'crash'})[why]",
    ),
    Mutant(
        "what comes back goes to the end of the queue",
        "common/ready.lua",
        "ready_prepend(job, task.lane, name)",
        "ready_append(job, task.lane, {name})",
    ),
    Mutant(
        "a crash alone blames no row",
        "common/settle.lua",
        "elseif kind == 'crash' and task.alone == 1 and row ~= '' then",
        "elseif false then",
    ),
    Mutant(
        "a row is left out after its first crash",
        "common/settle.lua",
        "if tonumber(times) >= MAX_CRASHES then",
        "if true then",
    ),
    Mutant(
        "a beat forgets the row that runs",
        "beat.lua",
        "at_work.done, at_work.failed, at_work.row}",
        "at_work.done, at_work.failed, ''}",
    ),
    Mutant(
        "what comes back to a paused job is found",
        "common/ready.lua",
        "if not head.paused then activate(job, head, task.lane) end",
        "activate(job, head, task.lane)",
    ),
    Mutant(
        "an idle tenant saves up",
        "common/ready.lua",
        "local start = math.max(number(times[1]), floor)",
        "local start = number(times[1])",
    ),
    Mutant(
        "a newcomer starts at the class's clock although its lane lies behind",
        "common/ready.lua",
        "if first[2] then floor = math.min(floor, tonumber(first[2])) end",
        "",
    ),
    Mutant(
        "the planner's view keeps cancelled work",
        "common/ready.lua",
        "count_ready(job, head, lane, -tasks, -pictures)\n",
        "",
    ),
    Mutant(
        "an empty lane stays listed",
        "common/ready.lua",
        "  redis.call('SREM', P .. 'lanes:' .. checkpoint_of(lane) .. ':' .. class, lane)\n",
        "",
    ),
    Mutant(
        "weights are ignored",
        "common/ahead.lua",
        "table_.set(tenant, start + cost / weights[tenant])",
        "table_.set(tenant, start + cost)",
    ),
    Mutant(
        "shares are counted in tasks",
        "common/ahead.lua",
        "table_.set(tenant, start + cost / weights[tenant])",
        "table_.set(tenant, start + 1 / weights[tenant])",
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
        "for class = URGENT, BULK do\n      if #fields[class].lanes > 0 then chosen",
        "for class = BULK, URGENT, -1 do\n      if #fields[class].lanes > 0 then chosen",
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
        "if unpack_held(only[1]).alone == 1 then return '[]' end",
        "",
    ),
    Mutant(
        "a task that runs alone goes to a busy session",
        "lease.lua",
        "if holding + #granted == 0 and room > 0 then",
        "if room > 0 then",
    ),
    Mutant(
        "no session makes itself free for a task that runs alone",
        "lease.lua",
        "if redis.call('SCARD', P .. 'draining') < suspects then",
        "if false then",
    ),
    Mutant(
        "every session makes itself free for one task that runs alone",
        "lease.lua",
        "if redis.call('SCARD', P .. 'draining') < suspects then",
        "if true then",
    ),
    Mutant(
        "late work starts",
        "lease.lua",
        "    if overdue(head) then\n",
        "    if false then\n",
    ),
    Mutant(
        "room is not counted",
        "lease.lua",
        "    room = room - pictures\n",
        "",
    ),
    Mutant(
        "a grant does not reach the inbox",
        "lease.lua",
        "  redis.call('RPUSH', P .. 'inbox:' .. session, unpack(granted))\n",
        "",
    ),
    Mutant(
        "a finalise task does not reach the inbox",
        "common/settle.lua",
        "  redis.call('RPUSH', P .. 'inbox:' .. session, key)\n",
        "",
    ),
    Mutant(
        "an attempt is not counted",
        "common/records.lua",
        "tostring(attempt + 1)",
        "attempt",
    ),
    Mutant(
        "a beat extends nothing",
        "beat.lua",
        "redis.call('ZADD', P .. 'sessions', now + ARGV[2], session)\n",
        "",
    ),
    Mutant(
        "a beat reports cancelled work as held",
        "beat.lua",
        "if task and head.state ~= 'x' and task.state == 'l'",
        "if task and task.state == 'l'",
    ),
    Mutant(
        "a beat counts progress twice",
        "beat.lua",
        "count(job, {rd = at_work.done - entry.done,",
        "count(job, {rd = at_work.done,",
    ),
    Mutant(
        "a beat offers room that is granted already",
        "beat.lua",
        "if unseen[key] then room = room - entry.pictures end",
        "",
    ),
    Mutant(
        "an unknown session may beat",
        "beat.lua",
        "if redis.call('EXISTS', P .. 'session:' .. session) == 0 then",
        "if false then",
    ),
    Mutant(
        "the tick gives sessions up at once after a restart",
        "tick.lua",
        "    redis.call('ZADD', P .. 'sessions', 'GT', now + ends[at + 1] - seen, ends[at])\n",
        "",
    ),
    Mutant(
        "the tick gives nobody up",
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
        "  if head then expire_job(job, head) end\n",
        "",
    ),
    Mutant(
        "the tick keeps idempotency keys for ever",
        "tick.lua",
        "    if h[2] then redis.call('HDEL', P .. 'keys:' .. h[1], h[2]) end\n",
        "",
    ),
    Mutant(
        "a stranger may cancel",
        "common/records.lua",
        "if head and head.tenant == tenant_number(tenant) then return head end",
        "if head then return head end",
    ),
    Mutant(
        "an ended job is cancelled",
        "cancel.lua",
        "if head.state ~= 'o' and head.state ~= 'c' then return head.state end\n",
        "",
    ),
    Mutant(
        "a cancelled job stays in the queue",
        "cancel.lua",
        "drop_ready(job, head)\n",
        "",
    ),
    Mutant(
        "a cancelled job's running pictures stay counted",
        "cancel.lua",
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
        "common/settle.lua",
        "      failed = cjson.decode(string.match(task.rest, '^%d+|(.*)$'))[2]\n",
        "",
    ),
    Mutant(
        "a retried picture stays counted as failed",
        "common/settle.lua",
        "count(job, {n = tasks, nq = tasks, ['if'] = -pictures})",
        "count(job, {n = tasks, nq = tasks})",
    ),
    Mutant(
        "a job is finalised while its retry is still being queued",
        "common/settle.lua",
        "if h[1] ~= 'c' or h[9] then return end",
        "if h[1] ~= 'c' then return end",
    ),
    Mutant(
        "a cancelled job is retried",
        "retry.lua",
        "if head.state == 'x' then return",
        "if false then return",
    ),
    Mutant(
        "a tenant whose stored time is behind is served first",
        "common/ahead.lua",
        "while more and not (head and known[head] <= last) do",
        "if not head and more then",
    ),
    Mutant(
        "a tenant keeps its turn after its grant",
        "common/ahead.lua",
        "if head == tenant then head = nil end",
        "",
    ),
    Mutant(
        "times of tenants are never brought up to date",
        "common/ahead.lua",
        "if #fresh > 0 then redis.call('ZADD', key, unpack(fresh)) end",
        "",
    ),
    Mutant(
        "a class's clock stands still",
        "common/ahead.lua",
        "if start > table_.of('now') then table_.set('now', start) end",
        "",
    ),
    Mutant(
        "the first task of a job stays queued when it is taken",
        "common/ahead.lua",
        "redis.call('HDEL', P .. 'job:' .. job, 'h' .. lane)",
        "",
    ),
    Mutant(
        "taken tasks stay queued",
        "common/ahead.lua",
        "if taken > 0 then redis.call('LPOP', key, taken) end",
        "",
    ),
    Mutant(
        "a job's second block of tasks is its first again",
        "common/ahead.lua",
        "listed = listed + #fresh",
        "listed = 0",
    ),
    Mutant(
        "a job without tasks stays listed",
        "common/ahead.lua",
        "emptied[#emptied + 1] = jobs[at]",
        "",
    ),
    Mutant(
        "a tenant without tasks stays listed",
        "common/ahead.lua",
        "    retire(lane, class, tenant)\n",
        "",
    ),
    Mutant(
        "a tenant's jobs end with its first block of them",
        "common/ahead.lua",
        "if at > #jobs and not gone then",
        "if at > #jobs and not page then",
    ),
    Mutant(
        "a started task forgets its crashes and losses",
        "common/records.lua",
        ".. task.attempt .. '|' .. blame .. '|' .. alone",
        ".. task.attempt .. '|||' .. alone",
    ),
    Mutant(
        "a started task forgets the rows that crashed",
        "common/records.lua",
        ".. session .. '|' .. rest",
        ".. session .. '|'",
    ),
    Mutant(
        "a session forgets that its task runs alone",
        "common/records.lua",
        ".. '|' .. task.alone .. '|' .. task.pictures",
        ".. '|0|' .. task.pictures",
    ),
    Mutant(
        "a beat never makes a session shorter",
        "beat.lua",
        "redis.call('ZADD', P .. 'sessions', now + ARGV[2], session)",
        "redis.call('ZADD', P .. 'sessions', 'GT', now + ARGV[2], session)",
    ),
    Mutant(
        "a stranger spoils a job's pictures",
        "spoil.lua",
        "if refused then return refused end",
        "head = read_job(job)",
    ),
    Mutant(
        "the pictures of a running job are spoiled",
        "spoil.lua",
        "if head.state ~= 'd' and head.state ~= 'f' then",
        "if false then",
    ),
    Mutant(
        "pictures are spoiled after the deadline",
        "spoil.lua",
        "if overdue(head) then return",
        "if false then return",
    ),
    Mutant(
        "a deadline that passes after a job's end is not noticed",
        "common/records.lua",
        "return head.late or (head.deadline ~= nil and head.deadline <= now)",
        "return head.late",
    ),
    Mutant(
        "a task that ran again since is spoiled",
        "spoil.lua",
        "if its and its.state ~= 'f' then",
        "if false then",
    ),
    Mutant(
        "a generation that failed is not asked for the pictures of an earlier one",
        "spoil.lua",
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
        "a task that is not done is spoiled",
        "spoil.lua",
        "if not task or task.state ~= 'd' then",
        "if not task then",
    ),
    Mutant(
        "more pictures are left than a task has",
        "spoil.lua",
        "if left > receipt[1] then",
        "if false then",
    ),
    Mutant(
        "a spoiled task's receipt tells of its old pictures",
        "spoil.lua",
        "receipt[1] = left\n",
        "",
    ),
    Mutant(
        "a spoiled task's receipt tells of no failed pictures",
        "spoil.lua",
        "receipt[2] = task.pictures - left\n",
        "",
    ),
    Mutant(
        "a spoiled task forgets its numerics class",
        "spoil.lua",
        "task.rest = class .. '|'",
        "task.rest = '0|'",
    ),
    Mutant(
        "spoiled pictures stay counted as done",
        "spoil.lua",
        "count(job, {id = -gone, ['if'] = gone})",
        "count(job, {['if'] = gone})",
    ),
    Mutant(
        "spoiled pictures are not counted as failed",
        "spoil.lua",
        "count(job, {id = -gone, ['if'] = gone})",
        "count(job, {id = -gone})",
    ),
    Mutant(
        "spoiled pictures are not retried",
        "spoil.lua",
        "  redis.call('RPUSH', failures, name)\n",
        "",
    ),
    Mutant(
        "a task that is spoiled twice is retried twice",
        "spoil.lua",
        "and not redis.call('LPOS', failures, name) then",
        "then",
    ),
    Mutant(
        "a task with all its pictures is retried",
        "spoil.lua",
        "if receipt[2] > 0 and not",
        "if not",
    ),
    Mutant(
        "a second spoiling counts the first again",
        "spoil.lua",
        "local gone = receipt[1] - left",
        "local gone = task.pictures - left",
    ),
    Mutant(
        "what fails while a retry is being queued is retried with it",
        "common/settle.lua",
        "math.min(RETRIED, due)",
        "RETRIED",
    ),
    Mutant(
        "a deadline leaves a retry going on",
        "common/settle.lua",
        "'dx', 1)\n  end_retry(job)",
        "'dx', 1)",
    ),
    Mutant(
        "a retry for a reason is of everything",
        "common/settle.lua",
        "return not reason or failed_by(task)",
        "return true or failed_by(task)",
    ),
    Mutant(
        "what failed for another reason is forgotten",
        "common/settle.lua",
        "      redis.call('RPUSH', list, name)\n",
        "",
    ),
    Mutant(
        "a second retry is for the first one's reason",
        "common/settle.lua",
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
        "common/settle.lua",
        "      task.crashes = MAX_CRASHES\n",
        "",
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
            break_script(tree / "farm" / "lua" / mutant.file, mutant)
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


def break_script(path: Path, mutant: Mutant) -> None:
    source = path.read_text(encoding="utf-8")
    if source.count(mutant.old) != 1:
        raise SystemExit(
            f"{mutant.name}: its text stands {source.count(mutant.old)} times "
            f"in {mutant.file}, not once"
        )
    path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="mutants whose name has this word")
    parser.add_argument("--first", type=int, default=0, help="how many of them to leave out")
    parser.add_argument("--tests", nargs="+", default=list(TESTS))
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if arguments.only in mutant.name]
    chosen = chosen[arguments.first :]
    if not passes(arguments.tests):
        raise SystemExit("the tests fail without any mutant: nothing would be learnt from them")
    survivors = []
    for mutant in chosen:
        start = time.monotonic()
        alive = passes(arguments.tests, mutant)
        seconds = time.monotonic() - start
        print(f"{'SURVIVES' if alive else 'found':8} {seconds:5.0f} s  {mutant.name}", flush=True)
        if alive:
            survivors.append(mutant)
    found = len(chosen) - len(survivors)
    print(f"{found} of {len(chosen)} mutants found ({found / max(len(chosen), 1):.0%})")
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
