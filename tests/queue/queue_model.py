"""The queue as it should be, in plain Python: no Redis, no index, nothing but the states."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from farm.job import Lease, Priority
from farm.queue import Progress
from farm.spec import Lane

MAX_CRASHES = 2
MAX_LOSSES = 20
MOST_SHARED_LOSSES = 3
SHARED, BY_ROW, ISOLATED = range(3)
MAX_SKIPPED = 16
QUARANTINE = 2  # of so many sessions one may take a task that runs alone
FINALISE = -1
ENDED = "dfce"
CLASSES = list(Priority)  # the first goes first
NOTHING = Progress(0, 0)


@dataclass
class Task:
    job: "Job"
    number: int
    generation: int
    lane: Lane | None
    pictures: int
    cost: int
    state: str = "q"  # as in the record: what the job says goes first
    session: str | None = None
    attempt: int = 0
    crashes: int = 0
    losses: int = 0
    alone: int = SHARED
    done: int = 0
    failed: int = 0
    progress: Progress = NOTHING
    row_crashes: Counter[int] = field(default_factory=Counter)

    @property
    def skip(self) -> set[int]:
        return {row for row, times in self.row_crashes.items() if times >= MAX_CRASHES}

    @property
    def key(self) -> str:
        return f"{self.job.id}/{self.generation}/{self.number}"

    @property
    def final(self) -> bool:
        return self.lane is None

    @property
    def seen_state(self) -> str:
        if self.state in "qw" and self.job.late and not self.final:
            return "e"
        if self.state in "qlw" and self.job.state == "x":
            return "c"
        return self.state

    @property
    def failed_by(self) -> str:
        if self.state == "d":
            return "row"
        if self.losses >= MAX_LOSSES:
            return "infra"
        crashed = self.crashes >= MAX_CRASHES or len(self.skip) > MAX_SKIPPED
        return "crash" if crashed else "row"

    @property
    def ready(self) -> bool:
        if self.final:
            return self.state == "q" and self.job.state == "c"
        return self.seen_state == "q" and not self.job.paused


@dataclass
class Job:
    id: str
    tenant: str
    priority: Priority
    max_failed: int
    deadline: float | None
    state: str = "o"
    tasks: dict[tuple[int, int], Task] = field(default_factory=dict)
    finals: dict[int, Task] = field(default_factory=dict)
    finished: list[tuple[int, int]] = field(default_factory=list)
    failures: list[Task] = field(default_factory=list)
    pieces: set[int] = field(default_factory=set)
    generation: int = 0
    late: bool = False
    paused: bool = False

    @property
    def alive(self) -> bool:
        return self.state in "oc"

    def overdue(self, now: float) -> bool:
        return self.late or (self.deadline is not None and self.deadline <= now)

    def newer(self, task: Task) -> list[Task]:
        """Later generations of the same task."""
        return [
            one
            for (generation, number), one in sorted(self.tasks.items())
            if number == task.number and generation > task.generation
        ]

    @property
    def all_but_finalised(self) -> bool:
        return not self.failures and self.finals[self.generation].state == "f"

    def done_before(self, task: Task) -> int:
        """Pictures of the task's earlier generations."""
        earlier = (self.tasks.get((g, task.number)) for g in range(task.generation))
        return sum(one.done for one in earlier if one is not None)

    def count(self, state: str) -> int:
        return sum(task.seen_state == state for task in self.tasks.values())

    @property
    def total(self) -> int:
        return sum(task.pictures for task in self.tasks.values() if task.generation == 0)

    @property
    def failed(self) -> int:
        failed = 0
        for task in self.tasks.values():
            if task.seen_state == "d":
                failed += task.failed
            elif task.seen_state in "fe":
                failed += task.pictures
            if task.generation:
                failed -= task.pictures
        return failed

    @property
    def done(self) -> int:
        return sum(task.done for task in self.tasks.values() if task.state == "d")

    @property
    def expired(self) -> int:
        return sum(task.pictures for task in self.tasks.values() if task.seen_state == "e")

    @property
    def running_done(self) -> int:
        if not self.alive:
            return 0
        return sum(task.progress.done for task in self.tasks.values() if task.state == "l")


@dataclass
class Session:
    id: str
    deadline: float
    seen: float
    checkpoints: tuple[str, ...]
    held: dict[str, Task] = field(default_factory=dict)
    command: bool = False


class Model:
    """Each method is a transition; those that choose are told what was chosen and check it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.jobs: dict[str, Job] = {}
        self.sessions: dict[str, Session] = {}

    def add(self, job: Job, tasks: Iterable[tuple[int, Lane, int, int]]) -> None:
        for number, lane, pictures, cost in tasks:
            job.tasks[0, number] = Task(job, number, 0, lane, pictures, cost)

    def settle(self, job: Job, session: Session | None) -> None:
        ended = all(task.seen_state in ENDED for task in job.tasks.values())
        if job.state != "c" or not ended or job.generation in job.finals:
            return
        task = Task(job, FINALISE, job.generation, None, 0, 0)
        job.finals[job.generation] = task
        if session and session.id in self.sessions and not session.command:
            self.hold(session, task)

    def hold(self, session: Session, task: Task) -> None:
        task.state, task.session, task.progress = "l", session.id, NOTHING
        task.attempt += 1
        session.held[task.key] = task

    @property
    def isolated(self) -> int:
        """Sessions that hold a task that runs alone."""
        held = [task for session in self.sessions.values() for task in session.held.values()]
        return sum(task.alone != SHARED for task in held)

    def find(self, lease: Lease) -> Task:
        job = self.jobs[lease.job]
        if lease.number == FINALISE:
            return job.finals[lease.generation]
        return job.tasks[lease.generation, lease.number]

    def check_grant(
        self,
        session: Session,
        granted: list[Lease],
        lanes: list[Lane] | None,
        room: int,
        limit: int,
        ms: int,
        lowest: Priority = Priority.BULK,
    ) -> None:
        """Whether these were the tasks to grant; which of several was free to the queue."""
        session.deadline = max(session.deadline, session.seen + ms / 1000)
        refused = (
            session.command
            or session.deadline <= self.now
            or (len(session.held) == 1 and next(iter(session.held.values())).alone)
        )
        if refused:
            assert granted == []
            return
        assert len(granted) <= limit
        holding = len(session.held)
        finals = [t for job in self.jobs.values() for t in job.finals.values() if t.ready]
        fitting = [
            task
            for job in self.jobs.values()
            for task in job.tasks.values()
            if task.ready
            and task.lane is not None
            and task.lane.checkpoint in session.checkpoints
            and (lanes is None or task.lane in lanes)
            and CLASSES.index(job.priority) <= CLASSES.index(lowest)
        ]
        suspects = [task for task in fitting if task.alone]
        plain = [task for task in fitting if not task.alone]
        given = [self.find(lease) for lease in granted]
        for lease, task in zip(granted, given, strict=True):
            assert task in finals or task in fitting
            assert lease.attempt == task.attempt + 1
            assert lease.alone == (task.alone == BY_ROW)
            assert set(lease.skip) == task.skip
            assert (lease.pictures, lease.cost) == (task.pictures, task.cost)
            assert lease.priority is task.job.priority
            assert lease.lane == ("" if task.final else str(task.lane))
        given_finals = [task for task in given if task.final]
        assert len(given_finals) == min(limit, len(finals))
        if any(task.alone for task in given):
            assert len(given) == 1
            assert holding == 0
            assert self.isolated < max(1, len(self.sessions) // QUARANTINE)
        elif suspects and holding + len(given_finals) == 0 and room > 0 and not given:
            assert len(self.sessions) > 1, "the only session was given nothing"
        elif not suspects:
            left = room - sum(task.pictures for task in given)
            more = [task for task in plain if task not in given]
            assert left <= 0 or len(given) == limit or not more, "work was left lying"
        before_last = sum(task.pictures for task in given if not task.final)
        if normal := [task for task in given if not task.final]:
            assert before_last - normal[-1].pictures < room
        for task in given:
            self.hold(session, task)

    def give_back(self, task: Task, kind: str) -> None:
        row = task.progress.row
        task.session, task.progress = None, NOTHING
        if kind == "row":
            self.fail(task)
            return
        if kind == "crash" and task.final:
            kind = "infra"
        if kind == "crash" and task.alone == BY_ROW and row is not None:
            task.row_crashes[row] += 1
            if len(task.skip) > MAX_SKIPPED:
                self.fail(task)
                return
        elif kind == "crash" and task.alone == BY_ROW:
            task.crashes += 1
            if task.crashes >= MAX_CRASHES:
                self.fail(task)
                return
        elif kind == "infra":
            task.losses += 1
            if task.losses >= MAX_LOSSES:
                self.fail(task)
                return
            if not (task.final or task.alone) and task.losses >= MOST_SHARED_LOSSES:
                task.alone = ISOLATED
        if kind == "crash":
            task.alone = BY_ROW
        if task.job.late and not task.final:
            task.state = "e"
        else:
            task.state = "q" if kind == "release" else "w"

    def fail(self, task: Task) -> None:
        task.state = "f"
        if task.final:
            task.job.state = "f"
        else:
            task.job.failures.append(task)

    def holds(self, session: Session | None, task: Task, attempt: int) -> bool:
        return (
            session is not None
            and task.state == "l"
            and task.session == session.id
            and task.attempt == attempt
        )

    def complete(self, session_id: str, lease: Lease, failed: int) -> str:
        task = self.find(lease)
        session = self.sessions.get(session_id)
        if task.state == "d":
            return "already"
        if task.job.state == "x":
            # Also after the heartbeat or the end that took it from the session.
            last = task.state == "l" and task.session == session_id
            if session and last:
                session.held.pop(task.key, None)
            if task.final or not last or task.attempt != lease.attempt:
                return "cancelled"
        elif not self.holds(session, task, lease.attempt):
            return "stale"
        else:
            assert session is not None
            del session.held[task.key]
        task.state, task.session, task.progress = "d", None, NOTHING
        job = task.job
        if task.final:
            job.state = "f" if job.failed > job.max_failed else "d"
            return "committed"
        task.done, task.failed = task.pictures - failed, failed
        job.finished.append((task.number, task.generation))
        if failed:
            job.failures.append(task)
        self.settle(job, session)
        return "committed"

    def let_go(self, session: Session | None, lease: Lease, kind: str) -> str:
        task = self.find(lease)
        if task.job.state == "x":
            if session and task.state == "l" and task.session == session.id:
                session.held.pop(task.key, None)
            return task.seen_state
        if not self.holds(session, task, lease.attempt):
            return task.seen_state
        assert session is not None
        del session.held[task.key]
        self.give_back(task, kind)
        self.settle(task.job, session)
        return task.state

    def end(self, session: Session, why: str) -> int:
        kind = {"crash": "crash", "drain": "release", "lost": "infra"}[why]
        del self.sessions[session.id]
        for task in session.held.values():
            if task.job.state != "x" and task.state == "l" and task.session == session.id:
                self.give_back(task, kind)
                self.settle(task.job, None)
        return len(session.held)

    def heartbeat(
        self, session: Session, progress: dict[str, Progress], ms: int
    ) -> tuple[set[str], set[str]]:
        session.deadline = self.now + ms / 1000
        session.seen = self.now
        cancelled = {key for key, task in session.held.items() if task.job.state == "x"}
        for key in cancelled:
            del session.held[key]
        for key, value in progress.items():
            if key in session.held:
                session.held[key].progress = value
        return set(session.held), cancelled

    def tick(self) -> None:
        for job in self.jobs.values():
            if job.alive and not job.late and job.deadline and job.deadline <= self.now:
                job.late = True
                self.settle(job, None)
        for job in self.jobs.values():
            for task in [*job.tasks.values(), *job.finals.values()]:
                if task.state == "w" and job.alive and (task.final or not job.late):
                    task.state = "q"
        for session in list(self.sessions.values()):
            if session.deadline <= self.now:
                self.end(session, "lost")

    def failed_for(self, job: Job, reason: str | None) -> list[Task]:
        return [task for task in job.failures if reason in {None, task.failed_by}]

    def invalidate(self, task: Task, left: int) -> int:
        gone = task.done - left
        task.done, task.failed = left, task.pictures - left
        if newer := task.job.newer(task):
            failed = newer[-1]
            failed.cost = math.ceil(failed.cost * (failed.pictures + gone) / failed.pictures)
            failed.pictures += gone
        elif task.failed and task not in task.job.failures:
            task.job.failures.append(task)
        return gone

    def retry(self, job: Job, reason: str | None = None) -> None:
        retried = self.failed_for(job, reason)
        job.generation += 1
        job.state = "c"
        for task in retried:
            pictures = task.failed if task.state == "d" else task.pictures
            job.tasks[job.generation, task.number] = Task(
                job,
                task.number,
                job.generation,
                task.lane,
                pictures,
                math.ceil(task.cost * pictures / task.pictures),
                alone=task.alone,
            )
        job.failures = [task for task in job.failures if task not in retried]
        self.settle(job, None)
