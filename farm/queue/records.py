"""What the queue is told and what it answers."""

import enum
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from farm.job import Format, JobOptions, JobState, Priority, Receipt
from farm.spec import Lane


class JobHeader(NamedTuple):
    """A submission, without its tasks."""

    job: str  # the id that the caller made for it
    tenant: str
    options: JobOptions
    fingerprint: str  # sha256 hex of what was submitted: the same key with another one is refused


class Opened(NamedTuple):
    job: str  # may be an older one, found by its idempotency key
    created: bool


class Progress(NamedTuple):
    """How far a worker is with a task."""

    done: int  # pictures
    failed: int
    # The one that runs next, by its place in the task, of a task that runs row by row. A beat tells
    # of it before it runs: if the worker then crashes, it is blamed and the rest of the task kept.
    row: int | None = None


class Beat(NamedTuple):
    """The answer to a sign of life."""

    held: set[str]  # lease keys; a worker drops whatever it has that is not among them
    cancelled: set[str]  # were held until now
    command: str | None


class Verdict(enum.StrEnum):
    COMMITTED = "committed"
    ALREADY = "already"  # somebody was first, perhaps the caller itself
    CANCELLED = "cancelled"
    STALE = "stale"  # the session does not hold the task any more


class Outcome(NamedTuple):
    verdict: Verdict
    receipt: Receipt | None  # the winner's, where the task is done


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
    """A task as the store tells of it."""

    number: int
    generation: int
    lane: Lane
    pictures: int
    cost: int
    receipt: Receipt | None = None  # of one that is done
    lost: bool = False  # it ran out of attempts
    retry: bool = False  # its failed pictures were not made by a later generation


class Session(NamedTuple):
    """One life of one worker."""

    session: str
    worker: str
    checkpoints: tuple[str, ...]
    room: int  # pictures, less what was granted since the last beat
    held: int  # tasks
    seen_ms: int  # since the last sign of life
    info: Mapping[str, Any]
    stats: Mapping[str, Any]
    command: str | None


class LaneWork(NamedTuple):
    """What is ready in a lane."""

    lane: Lane
    priority: Priority
    tasks: int
    pictures: int


class Event(NamedTuple):
    id: str
    job: str
    kind: str  # a job's state, or "task" when one of its tasks ended


class Images(BaseModel):
    model_config = ConfigDict(frozen=True)

    total: int
    done: int
    failed: int
    running_done: int  # rendered in tasks that are not done yet


class Tasks(BaseModel):
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
    format: Format
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    deadline: datetime | None
    generation: int
    images: Images
    tasks: Tasks
    rejected: int  # renders of the submission that were refused
    max_failed: int
    reason: str | None
