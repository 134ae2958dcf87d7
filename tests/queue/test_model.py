"""Random lives of a farm, on the real server, against the model; every invariant at every step."""

import json
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from queue_bench import CHECKPOINT, LANE, Bench, moved_clock
from queue_model import Job, Model, Session

from farm.errors import Conflict, JobCancelled, LeaseLost, NotFound
from farm.job import JobOptions, JobState, Lease, Priority, Receipt, TaskDraft, job_id
from farm.local.valkey import ServerProcess
from farm.queue import JobHeader, JobStatus, Progress, Queue, connect, encoding
from farm.queue.constants import CLASSES, MAX_ROWS
from farm.queue.scripts import read_scripts
from farm.spec import Lane

DEEP = bool(os.environ.get("FARM_DEEP"))  # other lives every time, and fifty times as many
SHRINK = not os.environ.get("FARM_NO_SHRINK")  # takes minutes
LIVES = int(os.environ.get("FARM_LIVES", 3000 if DEEP else 60))
STEPS = 50
OTHER = LANE._replace(checkpoint="other/model@r1")
LANES = [LANE, LANE._replace(width=512), OTHER]
SHORT, LONG = 30_000, 10**8  # ms: ends before the next move of the clock, and never
MOVE = 70  # seconds; longer than any wait
DEADLINE = 35  # seconds
TENANTS = ["ann", "bob"]
MAX_JOBS = 5


class TwiceQueue(Queue):
    """Sends calls again, as after a lost reply; the answer must not change."""

    twice = False

    def _run(self, name: str, *arguments: Any) -> Any:
        first = super()._run(name, *arguments)
        if self.twice:
            second = super()._run(name, *arguments)
            if name == "complete":
                renamed = {"committed": "already"}
                before, after = (json.loads(reply) for reply in (first, second))
                assert [row[0] for row in after] == [renamed.get(row[0], row[0]) for row in before]
            elif name == "lease":
                assert json.loads(second) == [row[0] for row in json.loads(first)]
            elif name in {"append", "end_session", "invalidate"}:
                assert second == 0
            elif name == "heartbeat":
                assert sorted(second[1]) == sorted(first[1])
            elif name not in {"tick", "held"}:
                assert second == first
        return first

    def ask(self, calls: list[tuple[Any, ...]]) -> list[Any]:
        """Scripts that only look, all in one round trip."""
        together = self.client.pipeline(transaction=False)
        for name, *arguments in calls:
            together.evalsha(self._scripts[name].sha, 1, self._prefix, *arguments)
        return list(together.execute())


class Farm(RuleBasedStateMachine):
    client: "redis.Redis"
    scripts: dict[str, str]

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.client.hset("{farm}:server", "settled", self.client.info("server")["run_id"])
        self.queue = TwiceQueue(self.client, scripts=self.scripts)
        self.model = Model()
        self.bench = Bench(self.queue)
        self.leases: list[Lease] = []
        self.ended: list[Session] = []
        self.keys: dict[tuple[str, str], tuple[str, str]] = {}

    @initialize(data=st.data(), jobs=st.integers(0, 2), sessions=st.integers(0, 2))
    def start(self, data: st.DataObject, jobs: int, sessions: int) -> None:
        """A farm at work already: most lives would not get that far by chance."""
        self.queue.tick()
        for _ in range(sessions):
            self.register(both=data.draw(st.booleans()), lasting=True, twice=False)
        for _ in range(jobs):
            options = JobOptions(max_failed=data.draw(st.sampled_from([0, 2])))
            header = JobHeader(job_id(), data.draw(st.sampled_from(TENANTS)), options, "0" * 64)
            tasks = self.draft_tasks(data, least=2)
            self.queue.submit(header, tasks)
            self.submitted(header, tasks)

    # What is at hand to choose from.

    def any_session(self, data: st.DataObject) -> Session:
        return data.draw(st.sampled_from([*self.model.sessions.values(), *self.ended[-2:]]))

    def any_job(self, data: st.DataObject, states: str = "ocdfx") -> Job:
        jobs = [job for job in self.model.jobs.values() if job.state in states]
        return data.draw(st.sampled_from(jobs))

    def draft_tasks(
        self, data: st.DataObject, first: int = 0, least: int | None = None
    ) -> list[TaskDraft]:
        shapes = st.tuples(st.sampled_from(LANES), st.integers(1, 4), st.integers(0, 50))
        if least is None:
            least = data.draw(st.sampled_from([0, 1, 2]))
        rows = data.draw(st.lists(shapes, min_size=least, max_size=5))
        return [TaskDraft(first + at, *row) for at, row in enumerate(rows)]

    def has_jobs(self, states: str = "ocdfx") -> bool:
        return any(job.state in states for job in self.model.jobs.values())

    # A user's side.

    @precondition(lambda self: len(self.model.jobs) < MAX_JOBS)
    @rule(
        data=st.data(),
        tenant=st.sampled_from(TENANTS),
        priority=st.sampled_from(Priority),
        max_failed=st.sampled_from([0, 2, 100]),
        deadline=st.sampled_from([False, False, True]),
        key=st.sampled_from([None, None, "k"]),
        fingerprint=st.sampled_from(["0" * 64, "1" * 64]),
        opened=st.booleans(),
        twice=st.booleans(),
    )
    def submit(
        self,
        data: st.DataObject,
        tenant: str,
        priority: Priority,
        max_failed: int,
        deadline: bool,
        key: str | None,
        fingerprint: str,
        opened: bool,
        twice: bool,
    ) -> None:
        options = JobOptions(priority=priority, max_failed=max_failed, idempotency_key=key)
        if deadline:
            at = self.server_now() + DEADLINE
            options = options.model_copy(update={"deadline": at_moment(at)})
        header = JobHeader(job_id(), tenant, options, fingerprint)
        tasks = [] if opened else self.draft_tasks(data)
        known = self.keys.get((tenant, key)) if key else None
        call: Callable[[], Any] = (
            (lambda: self.queue.open(header))
            if opened
            else lambda: self.queue.submit(header, tasks)
        )
        if known and known[1] != fingerprint:
            with pytest.raises(Conflict):
                self.send(call)
            return
        answer = self.send(call, twice)
        if known:
            assert answer == (known[0], False)
            return
        assert answer == (header.job, True)
        if key:
            self.keys[tenant, key] = (header.job, fingerprint)
        self.submitted(header, None if opened else tasks)

    def submitted(self, header: JobHeader, tasks: list[TaskDraft] | None) -> None:
        options = header.options
        when = self.model.now + DEADLINE if options.deadline else None
        job = Job(header.job, header.tenant, options.priority, options.max_failed, when)
        self.model.jobs[job.id] = job
        if tasks is not None:
            self.model.add(job, [(t.number, t.lane, t.pictures, t.cost) for t in tasks])
            job.state = "c"
            self.model.settle(job, None)

    @precondition(lambda self: self.has_jobs())
    @rule(data=st.data(), piece=st.integers(0, 3), sha=st.sampled_from("ab"), twice=st.booleans())
    def append(self, data: st.DataObject, piece: int, sha: str, twice: bool) -> None:
        job = self.any_job(data)
        tasks = self.draft_tasks(data, first=10 * piece)

        def call() -> bool:
            return self.queue.append(job.id, piece, sha * 64, tasks)

        known = piece in job.pieces and job.alive
        if known and sha == "a":
            assert self.send(call) is False
        elif known or job.state in "cdf" or (job.late and job.state == "o"):
            with pytest.raises(Conflict):
                self.send(call)
        elif job.state == "x":
            with pytest.raises(JobCancelled):
                self.send(call)
        elif sha == "a":
            assert self.send(call, twice) is True
            job.pieces.add(piece)
            self.model.add(job, [(t.number, t.lane, t.pictures, t.cost) for t in tasks])

    @precondition(lambda self: self.has_jobs("o"))
    @rule(data=st.data(), off=st.sampled_from([0, 0, 0, 1, -1]), twice=st.booleans())
    def close(self, data: st.DataObject, off: int, twice: bool) -> None:
        job = self.any_job(data, "o")
        pieces = max(job.pieces, default=-1) + 1 + off
        if job.pieces != set(range(pieces)):
            with pytest.raises(Conflict):
                self.send(lambda: self.queue.close(job.id, pieces))
            return
        self.send(lambda: self.queue.close(job.id, pieces), twice)
        job.state = "c"
        self.model.settle(job, None)

    @precondition(lambda self: self.has_jobs())
    @rule(
        data=st.data(),
        action=st.sampled_from(["pause", "resume", "resume", "cancel", "stranger", "command"]),
        twice=st.booleans(),
    )
    def control(self, data: st.DataObject, action: str, twice: bool) -> None:
        job = self.any_job(data)
        if action == "stranger":
            with pytest.raises(NotFound):
                self.queue.cancel(job.id, "eve")
        elif action == "cancel":
            self.send(lambda: self.queue.cancel(job.id, job.tenant), twice)
            if job.alive:
                job.state = "x"
        elif action in {"pause", "resume"}:
            call = self.queue.pause if action == "pause" else self.queue.resume
            if job.alive:
                self.send(lambda: call(job.id, job.tenant), twice)
                job.paused = action == "pause"
            else:
                with pytest.raises(Conflict):
                    call(job.id, job.tenant)
        elif self.model.sessions:
            session = data.draw(st.sampled_from(list(self.model.sessions.values())))
            session.command = not session.command
            self.queue.set_command(session.id, "drain" if session.command else None)

    @precondition(lambda self: self.has_jobs("df"))
    @rule(
        data=st.data(),
        reason=st.sampled_from([None, None, "row", "crash", "infra"]),
        twice=st.booleans(),
    )
    def retry(self, data: st.DataObject, reason: str | None, twice: bool) -> None:
        job = self.any_job(data, "df")

        def call() -> int:
            return self.queue.retry(job.id, job.tenant, reason)

        nothing = not self.model.failed_for(job, reason) and (reason or job.state == "d")
        late = job.overdue(self.model.now) and not job.all_but_finalised
        if late or nothing:
            with pytest.raises(Conflict):
                call()
            return
        assert self.send(call, twice) == job.generation + 1
        self.model.retry(job, reason)

    @precondition(lambda self: self.has_jobs("df"))
    @rule(data=st.data(), twice=st.booleans())
    def invalidate(self, data: st.DataObject, twice: bool) -> None:
        job = self.any_job(data, "df")
        finished = self.queue.finished(job.id)
        if not finished:
            return
        which = data.draw(st.sampled_from(finished))
        task = job.tasks[which.generation, which.number]
        left = data.draw(st.integers(-job.done_before(task), task.pictures))
        again = any(newer.state != "f" for newer in job.newer(task))
        if job.overdue(self.model.now) or left > task.done or again:
            with pytest.raises(Conflict):
                self.queue.invalidate(job.id, job.tenant, which, left)
            return
        gone = self.send(lambda: self.queue.invalidate(job.id, job.tenant, which, left), twice)
        assert gone == self.model.invalidate(task, left)

    # A worker's side.

    @precondition(lambda self: len(self.model.sessions) < 4)
    @rule(both=st.booleans(), lasting=st.sampled_from([True, True, False]), twice=st.booleans())
    def register(self, both: bool, lasting: bool, twice: bool) -> None:
        session = secrets.token_hex(16)
        checkpoints = (CHECKPOINT, OTHER.checkpoint) if both else (CHECKPOINT,)
        self.send(lambda: self.queue.register(session, "w", checkpoints, {}), twice)
        now = self.model.now
        self.model.sessions[session] = Session(session, now + 30, now, checkpoints)
        if lasting:
            self.queue.heartbeat(session, 0, {}, {}, LONG)
            self.model.heartbeat(self.model.sessions[session], {}, LONG)

    @precondition(lambda self: self.model.sessions)
    @rule(
        data=st.data(),
        lanes=st.sampled_from([None, None, [LANES[0]], LANES]),
        room=st.integers(0, 12),
        limit=st.integers(1, 5),
        ms=st.sampled_from([SHORT, LONG]),
        lowest=st.sampled_from([Priority.BULK, Priority.BULK, Priority.URGENT]),
        twice=st.booleans(),
    )
    def lease(
        self,
        data: st.DataObject,
        lanes: list[Lane] | None,
        room: int,
        limit: int,
        ms: int,
        lowest: Priority,
        twice: bool,
    ) -> None:
        session = self.any_session(data)
        if session.id not in self.model.sessions:
            with pytest.raises(LeaseLost):
                self.queue.lease(session.id, lanes, room, ms, limit)
            return
        waiting = self.client.llen(f"{{farm}}:inbox:{session.id}")

        def call() -> list[Lease]:
            return self.queue.lease(session.id, lanes, room, ms, limit, lowest=lowest)

        granted = self.send(call, twice)
        assert self.client.llen(f"{{farm}}:inbox:{session.id}") == waiting + len(granted)
        self.model.check_grant(session, granted, lanes, room, limit, ms, lowest)
        self.leases += granted

    @precondition(lambda self: self.model.sessions)
    @rule(data=st.data())
    def inbox(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(list(self.model.sessions.values())))
        if self.client.llen(f"{{farm}}:inbox:{session.id}"):
            for lease in self.queue.inbox(session.id, 0.01):
                task = self.model.find(lease)
                assert session.held[lease.key] is task
                assert lease.attempt == task.attempt
                self.leases.append(lease)

    @precondition(lambda self: self.model.sessions)
    @rule(data=st.data(), ms=st.sampled_from([SHORT, LONG, LONG]), twice=st.booleans())
    def heartbeat(self, data: st.DataObject, ms: int, twice: bool) -> None:
        session = self.any_session(data)
        few = st.integers(0, 2)
        counts = st.builds(Progress, few, few, st.none() | few)
        progress = {key: data.draw(counts) for key, task in session.held.items() if not task.final}
        if session.id not in self.model.sessions:
            with pytest.raises(LeaseLost):
                self.queue.heartbeat(session.id, 1, progress, {}, ms)
            return
        answer = self.send(lambda: self.queue.heartbeat(session.id, 1, progress, {}, ms), twice)
        held, cancelled = self.model.heartbeat(session, progress, ms)
        assert (answer.held, answer.cancelled) == (held, cancelled)
        assert answer.command == ("drain" if session.command else None)

    @precondition(lambda self: self.leases and self.model.sessions)
    @rule(data=st.data(), fresh=st.sampled_from([True, True, False]), twice=st.booleans())
    def complete(self, data: st.DataObject, fresh: bool, twice: bool) -> None:
        session, lease = self.some_lease(data, fresh)
        failed = data.draw(st.integers(0, lease.pictures)) if data.draw(st.booleans()) else 0
        receipt = Receipt(
            done=lease.pictures - failed,
            failed=failed,
            size=1,
            part="p",
            part_sha256="s",
            numerics="cpu",
        )
        outcome = self.send(lambda: self.queue.complete(session.id, lease, receipt), twice)
        assert outcome.verdict == self.model.complete(session.id, lease, failed)
        if outcome.receipt and not lease.finalise:
            assert outcome.receipt.failed == self.model.find(lease).failed

    @precondition(lambda self: self.leases and self.model.sessions)
    @rule(
        data=st.data(),
        kind=st.sampled_from(["row", "crash", "infra", "release"]),
        fresh=st.sampled_from([True, True, True, False]),
        twice=st.booleans(),
    )
    def fail(self, data: st.DataObject, kind: Any, fresh: bool, twice: bool) -> None:
        session, lease = self.some_lease(data, fresh)
        state = self.send(lambda: self.queue.fail(session.id, lease, kind, "because"), twice)
        expected = self.model.let_go(self.model.sessions.get(session.id), lease, kind)
        assert state.value[0] == expected

    @precondition(lambda self: self.model.sessions)
    @rule(
        data=st.data(),
        why=st.sampled_from(["crash", "crash", "drain", "lost"]),
        twice=st.booleans(),
    )
    def end(self, data: st.DataObject, why: Any, twice: bool) -> None:
        session = data.draw(st.sampled_from(list(self.model.sessions.values())))
        held = self.send(lambda: self.queue.end(session.id, why), twice)
        assert held == self.model.end(session, why)
        self.ended.append(session)

    @precondition(lambda self: self.model.sessions and self.has_jobs("oc"))
    @rule(data=st.data(), wrong=st.sampled_from([0, 0, 1]))
    def work_for_a_while(self, data: st.DataObject, wrong: int) -> None:
        """A worker that does what workers do; so that jobs come to their ends."""
        session = data.draw(st.sampled_from(list(self.model.sessions.values())))
        for _ in range(3):
            granted = self.queue.lease(session.id, None, 8, LONG, 4)
            self.model.check_grant(session, granted, None, 8, 4, LONG)
            self.leases += granted
            for lease in self.queue.held(session.id):
                failed = min(wrong, lease.pictures)
                outcome = self.queue.complete(session.id, lease, self.bench.receipt(lease, failed))
                assert outcome.verdict == self.model.complete(session.id, lease, failed)

    # Time.

    @rule(twice=st.booleans())
    def time_passes(self, twice: bool) -> None:
        self.bench.advance(MOVE)
        self.model.now += MOVE
        self.send(self.queue.tick, twice)
        before = dict(self.model.sessions)
        self.model.tick()
        self.ended += [s for key, s in before.items() if key not in self.model.sessions]

    # Always.

    @invariant()
    def everything_is_as_the_model_says(self) -> None:
        self.queue.twice = False
        jobs, sessions = list(self.model.jobs.values()), list(self.model.sessions.values())
        names, busy = self.read_lanes()
        asked: list[tuple[Any, ...]] = [
            ("sessions",),
            ("rooms",),
            ("backlog",),
            ("check_lanes", 0, *names),
            ("check_sessions", 0),
        ]
        for job in jobs:
            few = (job.id, 0, MAX_ROWS)
            asked += [("status", job.id, job.tenant), ("finished", *few), ("failures", *few)]
            asked.append(("check_job", job.id, 0))
        asked += [("held", session.id) for session in sessions]
        replies = iter(self.queue.ask(asked))
        told = {row[0]: (row[3], row[4], row[8]) for row in next(replies)}
        assert told.keys() == self.model.sessions.keys()
        planned = {row[0]: row[2:5] for row in json.loads(next(replies))[2]}
        assert planned.keys() == told.keys()
        for session, (room, held, command) in told.items():
            # A session that drains for a task that runs alone goes on once there is no such task.
            assert room in (planned[session][0], 0)
            assert planned[session][1:] == [held, command]
        self.check_work(next(replies))
        self.check_busy_lanes(names, busy)
        assert next(replies) == [], "a recount finds something"
        assert next(replies) == [], "a recount finds something"
        for job in jobs:
            self.check_job(job, encoding.status(job.id, next(replies)))
            assert [encoding.numbers(row[0]) for row in next(replies)] == job.finished
            assert sorted(encoding.numbers(row[1]) for row in next(replies)[1:]) == sorted(
                (task.number, task.generation) for task in job.failures if task.state == "f"
            )
            assert next(replies) == [], "a recount finds something"
        for session in sessions:
            self.check_held(session, [encoding.lease(row) for row in json.loads(next(replies))])

    def check_job(self, job: Job, status: JobStatus) -> None:
        assert (
            status.tasks.total,
            status.tasks.queued,
            status.tasks.leased,
            status.tasks.waiting,
            status.tasks.done,
            status.tasks.failed,
            status.tasks.cancelled,
            status.tasks.expired,
        ) == (len(job.tasks), *(job.count(state) for state in "qlwdfce"))
        assert (
            status.images.total,
            status.images.done,
            status.images.failed,
            status.images.expired,
            status.images.running_done,
        ) == (job.total, job.done, job.failed, job.expired, job.running_done)
        states = {"d": JobState.DONE, "f": JobState.FAILED, "x": JobState.CANCELLED}
        if job.state in states:
            assert status.state is states[job.state]
            assert status.ended_at is not None
        elif job.state == "o":
            assert status.state is JobState.OPEN
        else:
            assert status.state in {JobState.QUEUED, JobState.RUNNING}

    def read_lanes(self) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        """The names of the lanes, and the busy ones of each tenant."""
        together = self.client.pipeline(transaction=False)
        for key in ("lane:texts", "tenant:texts", "busy-lanes:1", "busy-lanes:2"):
            together.hgetall(f"{{farm}}:{key}")
        names, tenants, *busy = together.execute()
        return names, {tenants[str(at)]: its for at, its in enumerate(busy, 1) if its}

    def check_busy_lanes(self, names: dict[str, str], counted: dict[str, dict[str, str]]) -> None:
        """Lanes are counted for their tenant as long as jobs have work in them."""
        busy = {tenant: Counter[str]() for tenant in TENANTS}
        for job in self.model.jobs.values():
            if job.alive:
                busy[job.tenant].update({str(task.lane) for task in job.tasks.values()})
        assert busy == {
            tenant: {names[lane]: int(jobs) for lane, jobs in counted.get(tenant, {}).items()}
            for tenant in TENANTS
        }

    def check_held(self, session: Session, leases: list[Lease]) -> None:
        alive = {key for key, task in session.held.items() if task.job.state != "x"}
        assert {lease.key for lease in leases} == alive
        for lease in leases:
            assert lease.attempt == session.held[lease.key].attempt
            assert set(lease.skip) == session.held[lease.key].skip

    def check_work(self, rows: list[tuple[str, int, int, int]]) -> None:
        """The planner sees what is ready."""
        tasks: Counter[tuple[str, int]] = Counter()
        pictures: Counter[tuple[str, int]] = Counter()
        for job in self.model.jobs.values():
            for task in job.tasks.values():
                if task.ready and task.lane is not None:
                    place = (str(task.lane), CLASSES.index(job.priority))
                    tasks[place] += 1
                    pictures[place] += task.pictures
        assert {(row[0], row[1]): (row[2], row[3]) for row in rows} == {
            place: (tasks[place], pictures[place]) for place in tasks
        }

    def some_lease(self, data: st.DataObject, fresh: bool) -> tuple[Session, Lease]:
        """Mostly one that is held, by its holder; else any that ever was, by anybody."""
        held = [
            (session, lease)
            for session in self.model.sessions.values()
            for lease in self.leases
            if lease.key in session.held and session.held[lease.key].attempt == lease.attempt
        ]
        if fresh and held:
            return data.draw(st.sampled_from(held))
        return self.any_session(data), data.draw(st.sampled_from(self.leases))

    def send(self, call: Callable[[], Any], twice: bool = False) -> Any:
        self.queue.twice = twice
        try:
            return call()
        finally:
            self.queue.twice = False

    def server_now(self) -> float:
        seconds, _ = self.client.time()
        return float(seconds) + self.model.now


def at_moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@pytest.fixture(scope="module")
def volatile(folder: Any) -> Iterator[ServerProcess]:
    """Without a file: thousands of lives, and none of them needs to survive."""
    server = ServerProcess(folder / "volatile", options=("--appendonly", "no"))
    with server.serving():
        yield server


@pytest.mark.slow
def test_random_lives_agree_with_the_model(volatile: ServerProcess) -> None:
    client = connect(volatile.url)

    class Life(Farm):
        pass

    Life.client, Life.scripts = client, moved_clock(read_scripts())
    for source in Life.scripts.values():
        client.script_load(source)
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=LIVES,
            stateful_step_count=STEPS,
            database=None,
            derandomize=not DEEP,
            phases=[Phase.generate, Phase.shrink] if SHRINK else [Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
