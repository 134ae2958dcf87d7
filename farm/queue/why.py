"""Why a job is not done yet: what it waits for, what goes first, and how long it may take."""

import enum
from collections.abc import Sequence
from typing import NamedTuple

from farm.job import TERMINAL_JOBS, JobState
from farm.queue.messages import JobStatus, Session
from farm.spec import Lane


class WaitsFor(enum.StrEnum):
    """What has to happen next."""

    NOTHING = "nothing"  # it has ended, or workers have all of it in hand
    PIECES = "pieces"  # its sender has not sent the rest
    RESUME = "resume"  # somebody paused it
    WORKER = "worker"  # nobody serves its checkpoint
    HIGHER = "higher"  # work of a higher class goes first
    TURN = "turn"  # its tenant's earlier jobs go first
    ROOM = "room"  # the workers are full
    EMPTY_WORKER = "empty-worker"  # what was aboard at a crash runs alone
    RETRY = "retry"  # a pause before what failed is tried again
    FINALISE = "finalise"  # every picture has ended; the last file is to be written


class LaneQueue(NamedTuple):
    """A job's ready work in one lane."""

    lane: Lane
    tasks: int
    pictures: int
    row_steps: int  # of a picture, as its next task has them
    position: int  # among its tenant's jobs of this class, from 1
    earlier: int  # pictures of the tenant's jobs before it
    higher: int  # pictures of higher classes for the same checkpoint
    weight: float
    weights: float  # of all tenants with ready work of this class here

    @property
    def share(self) -> float:
        """Of the work of its class that its tenant gets."""
        return self.weight / self.weights


class Why(NamedTuple):
    status: JobStatus
    waits_for: WaitsFor
    alone: int  # tasks that were aboard at a crash and wait to run alone
    lanes: tuple[LaneQueue, ...]
    workers: int  # that serve it
    seconds: float | None  # until its end, roughly; None where no worker has measured its lanes


def reckon(
    status: JobStatus, alone: int, lanes: Sequence[LaneQueue], sessions: Sequence[Session]
) -> Why:
    """The whole answer, from what the queue knows of the job and of the workers."""
    workers = [session for session in sessions if session.command is None]
    if lanes:
        checkpoints = {queue.lane.checkpoint for queue in lanes}
        workers = [worker for worker in workers if checkpoints & {*worker.checkpoints}]
    return Why(
        status,
        _waits_for(status, alone, lanes, workers),
        alone,
        tuple(lanes),
        len(workers),
        _seconds(status, lanes, workers),
    )


def _waits_for(
    status: JobStatus, alone: int, lanes: Sequence[LaneQueue], workers: Sequence[Session]
) -> WaitsFor:
    tasks = status.tasks
    if status.state in TERMINAL_JOBS:
        return WaitsFor.NOTHING
    if status.paused:
        return WaitsFor.RESUME
    if tasks.queued and not workers:
        return WaitsFor.WORKER
    if any(queue.pictures for queue in lanes):
        if all(queue.higher for queue in lanes):
            return WaitsFor.HIGHER
        return WaitsFor.TURN if all(queue.earlier for queue in lanes) else WaitsFor.ROOM
    if alone:
        return WaitsFor.EMPTY_WORKER
    if tasks.leased:
        return WaitsFor.NOTHING
    if tasks.waiting:
        return WaitsFor.RETRY
    return WaitsFor.PIECES if status.state is JobState.OPEN else WaitsFor.FINALISE


def _seconds(
    status: JobStatus, lanes: Sequence[LaneQueue], workers: Sequence[Session]
) -> float | None:
    """Takes every worker for this job's lanes alone, and what goes first for as costly as it is."""
    if status.state in TERMINAL_JOBS:
        return 0.0
    images = status.images
    left = images.total - images.done - images.failed - images.running_done
    ready = sum(queue.pictures for queue in lanes)
    if not ready or left <= 0:
        return None
    total = 0.0
    for queue in lanes:
        pace = sum(float(_paces(worker).get(str(queue.lane), 0)) for worker in workers)
        if not pace:
            return None
        # What is in the workers' hands is spread over the lanes as what is ready.
        own = left * queue.pictures / ready
        total += (queue.higher + (queue.earlier + own) / queue.share) * queue.row_steps / pace
    return total


def _paces(worker: Session) -> dict[str, float]:
    return dict(worker.stats.get("paces", {}))
