"""Why a job is not done yet: what it waits for, what goes first, and how long it may take."""

import enum
from collections.abc import Sequence
from typing import NamedTuple

from farm.job import TERMINAL_JOBS, JobState
from farm.queue.messages import JobStatus, Session, summed_paces
from farm.spec import Lane


class WaitsFor(enum.StrEnum):
    """What has to happen next."""

    NOTHING = "nothing"  # it has ended, or workers hold all of it
    PIECES = "pieces"  # the client has not sent the rest
    RESUME = "resume"  # it was paused
    WORKER = "worker"  # no worker serves its checkpoint
    HIGHER = "higher"  # work of a higher class goes first
    TURN = "turn"  # its tenant's earlier jobs go first
    ROOM = "room"  # the workers are full
    EMPTY_WORKER = "empty-worker"  # its tasks run alone after a crash
    RETRY = "retry"  # a failed attempt is about to be tried again
    QUEUE = "queue"  # nothing can be written to its server: its disk or memory is full
    STORE = "store"  # nothing can be written there: it is full, read-only or away
    FINALISE = "finalise"  # every picture has ended; the last file has to be written


class LaneQueue(NamedTuple):
    """A job's ready work in one lane."""

    lane: Lane
    tasks: int
    pictures: int
    row_steps: int  # per picture of its next task
    position: int  # among its tenant's jobs of this class, from 1
    earlier: int  # pictures of the tenant's jobs before it
    higher: int  # pictures of higher classes for the same checkpoint
    weight: float
    weights: float  # of all tenants with ready work of this class here

    @property
    def share(self) -> float:
        """The part of its class's work that its tenant gets."""
        return self.weight / self.weights


class Why(NamedTuple):
    status: JobStatus
    waits_for: WaitsFor
    alone: int  # tasks that wait to run alone after a crash
    lanes: tuple[LaneQueue, ...]
    workers: int  # that serve it
    seconds: float | None  # until its end, roughly; None if no worker has measured its lanes
    note: str | None = None  # what stands in the way, in the words of the part that met it


def explain_wait(
    status: JobStatus, alone: int, lanes: Sequence[LaneQueue], sessions: Sequence[Session]
) -> Why:
    """Why a job is not done, from what the queue knows of the job and the workers."""
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
    """Assumes that workers serve only this job's lanes, and that work before it costs the same."""
    if status.state in TERMINAL_JOBS:
        return 0.0
    images = status.images
    left = images.total - images.done - images.failed - images.running_done
    ready = sum(queue.pictures for queue in lanes)
    if not ready or left <= 0:
        return None
    total = 0.0
    paces = summed_paces(workers)
    for queue in lanes:
        pace = paces.get(str(queue.lane))
        if not pace:
            return None
        # What workers hold is taken to be spread over the lanes as the ready work is.
        own = left * queue.pictures / ready
        total += (queue.higher + (queue.earlier + own) / queue.share) * queue.row_steps / pace
    return total
