"""What callers pass to the queue, and what it returns."""

import enum
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from farm.job import Format, JobOptions, JobState, Priority, Receipt
from farm.spec import Lane

MAX_REASON = 500  # characters
LONG_WAIT_SECONDS = 30  # of what was drawn, to be stored
PLANNED = ("beat", "urgent_room", "unbegun", "lanes")  # of a worker's stats, what a planner reads

FailKind = Literal["row", "crash", "infra", "release"]
EndReason = Literal["crash", "drain", "lost"]


class JobHeader(NamedTuple):
    """A submission, without its tasks."""

    job: str  # the id that the caller made for it
    tenant: str
    options: JobOptions
    fingerprint: str  # sha256 hex of the submission; a reused key with another one is refused


class Submitted(NamedTuple):
    job: str  # an older one if the idempotency key was used before
    created: bool


class Progress(NamedTuple):
    """How far a worker has got with a task."""

    done: int  # pictures
    failed: int
    # The row that runs next, by its place in the task, if the task runs row by row. A heartbeat
    # names it before it runs: a crash is then blamed on this row and the rest of the task is kept.
    row: int | None = None


class Heartbeat(NamedTuple):
    """The answer to a heartbeat."""

    held: set[str]  # lease keys; a worker drops everything else
    cancelled: set[str]  # held until now
    command: str | None
    unplanned: bool = False  # no scheduler looks, and it is this session's turn to lease for itself


class Command(NamedTuple):
    """What a worker is told by the answers to its heartbeats; while it has one it gets no work."""

    kind: Literal["drain", "share"]
    # drain: seconds for what it holds, without a number until it is finished; share: how many tasks
    # that it has not begun it hands back.
    number: int | None = None

    def __str__(self) -> str:
        return self.kind if self.number is None else f"{self.kind} {self.number}"

    @classmethod
    def parse(cls, text: str | None) -> "Command | None":
        """Of what a heartbeat returned; None for a command of a newer farm, too."""
        kind, _, number = (text or "").partition(" ")
        if kind not in ("drain", "share") or not (number or "0").isdecimal():
            return None
        return cls("drain" if kind == "drain" else "share", int(number) if number else None)


class Verdict(enum.StrEnum):
    COMMITTED = "committed"
    ALREADY = "already"  # it was recorded before, perhaps for an earlier call of the same caller
    CANCELLED = "cancelled"
    STALE = "stale"  # the session no longer holds the task


class Outcome(NamedTuple):
    verdict: Verdict
    receipt: Receipt | None  # the recorded one, if the task is done


class Finished(NamedTuple):
    """A task that is done, and its place in the order in which the job's tasks were done."""

    position: int  # from 1
    number: int
    generation: int
    receipt: Receipt


class Failure(NamedTuple):
    """A task that ran out of attempts."""

    position: int
    number: int
    generation: int
    pictures: int
    reason: str


class Restored(NamedTuple):
    """A task as the store has it."""

    number: int
    generation: int
    lane: Lane
    pictures: int
    cost: int
    receipt: Receipt | None = None  # of one that is done
    lost: bool = False  # it ran out of attempts
    retry: bool = False  # its failed pictures were not made by a later generation


class Removal(NamedTuple):
    """A job that the queue has forgotten and whose objects are to be deleted from the store."""

    entry: str  # names it in the queue
    job: str
    tenant: str


class Session(NamedTuple):
    """One life of one worker."""

    session: str
    worker: str
    checkpoints: tuple[str, ...]
    room: int  # pictures, less what was granted since the last heartbeat
    held: int  # tasks
    seen_ms: int  # since the last heartbeat
    info: Mapping[str, Any]
    stats: Mapping[str, Any]
    command: str | None

    @property
    def paces(self) -> dict[str, float]:
        """Row-steps per second by lane, as the worker measured them."""
        measured = self.stats.get("paces", {})
        return {lane: float(pace) for lane, pace in measured.items() if pace > 0}

    @property
    def problem(self) -> str | None:
        """What keeps the worker from being of use, in a line."""
        if (seconds := self.stats.get("waited", 0)) < LONG_WAIT_SECONDS:
            return None
        return f"what it has drawn waits for the store, for {seconds} s"


def summed_paces(sessions: Iterable[Session]) -> dict[str, float]:
    """Row-steps per second of all workers together, by lane."""
    found: dict[str, float] = {}
    for session in sessions:
        for lane, pace in session.paces.items():
            found[lane] = found.get(lane, 0.0) + pace
    return found


class Told(NamedTuple):
    """What a worker tells a planner: of its stats those in ``PLANNED``."""

    beat: int = 0  # heartbeats so far
    urgent_room: int = 0  # pictures of urgent tasks, however many others it holds
    unbegun: int = 0  # tasks that it could hand back
    lanes: frozenset[Lane] = frozenset()  # of the tasks at work


class WorkerRoom(NamedTuple):
    """What a planner needs of a session."""

    session: str
    checkpoints: frozenset[str]
    room: int  # pictures; none for a session that would be granted nothing
    held: int  # tasks
    command: str | None
    told: Told


class Rooms(NamedTuple):
    """Of all sessions."""

    finalise: int  # jobs that a worker has to finalise, and none does
    sessions: list[WorkerRoom]


class LaneBacklog(NamedTuple):
    """What is ready in a lane."""

    lane: Lane
    priority: Priority
    tasks: int
    pictures: int


class Event(NamedTuple):
    id: str
    job: str
    kind: str  # a job's state, or "task" when one of its tasks ended


class ImageCounts(BaseModel):
    model_config = ConfigDict(frozen=True)

    total: int
    done: int
    failed: int
    expired: int  # of those that failed: their deadline passed before they were started
    running_done: int  # rendered in tasks that are not yet done


class TaskCounts(BaseModel):
    model_config = ConfigDict(frozen=True)

    total: int
    queued: int
    leased: int
    waiting: int
    done: int
    failed: int
    cancelled: int
    expired: int


class JobStatus(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: str
    name: str | None
    state: JobState
    paused: bool
    priority: Priority
    sink: str
    format: Format
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    deadline: datetime | None
    generation: int
    images: ImageCounts
    tasks: TaskCounts
    row_steps: int  # of all its pictures
    rejected: int  # renders of the submission that were refused
    max_failed: int
    keep: int | None  # seconds after its end, then it is removed; None: until its tenant does it
    reason: str | None
