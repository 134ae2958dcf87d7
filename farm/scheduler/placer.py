"""Decides how many workers a cluster should run, and tells what becomes of them."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from farm.errors import FarmError
from farm.queue import Queue, placed_workers
from farm.queue.placed_workers import PlacedWorker, WorkerState
from farm.scheduler.growth import SHRINK_SECONDS, Growth, demand, workers_for
from farm.worker_group import WorkerGroup

LOOK_SECONDS = 1.0
LEAD_MS = 15_000  # that a scheduler places the workers after it last said so


class Cluster(Protocol):
    """What runs the workers; ``farm.scheduler.cluster_process`` does."""

    @property
    def workers(self) -> Sequence[PlacedWorker]: ...

    def want(self, counts: Mapping[str, int]) -> None: ...

    def deaths(self) -> list[str]: ...

    def close(self, *, end_workers: bool) -> None: ...


class Placer:
    """Of several schedulers the one that started last places the workers, and no other one starts,
    changes or ends any. So a new version or other settings take over from the old ones, and
    schedulers that differ do not end each other's workers.

    Args:
        queue: the farm's queue.
        cluster: what runs the workers.
        groups: of workers.
        target_seconds: how long the work that there is should take at most; a group with room to
            grow has as many workers as that needs.
        shrink_seconds: how long fewer workers must have sufficed before there are fewer.
        end_workers: with this placer, which keeps hold of them while the queue is away, too.
    """

    def __init__(
        self,
        queue: Queue,
        cluster: Cluster,
        groups: Sequence[WorkerGroup],
        *,
        target_seconds: float,
        shrink_seconds: float = SHRINK_SECONDS,
        end_workers: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = queue
        self._cluster = cluster
        self._groups = groups
        self._target_seconds = target_seconds
        self._shrink_seconds = shrink_seconds
        self._end_workers = end_workers
        self._clock = clock
        self._name = secrets.token_hex(8)
        self._started_ms = 0
        self._next_look = 0.0
        self._leads = False
        self._lead_ends = 0.0
        self._growth: dict[str, Growth] = {}

    def deaths(self) -> list[str]:
        """Lives of workers that have ended since the last call."""
        if self._clock() >= self._next_look:
            self._next_look = self._clock() + LOOK_SECONDS
            try:
                self._look()
            except FarmError:  # a queue that is away changes nothing until another one may lead
                if self._leads and not self._end_workers and self._clock() > self._lead_ends:
                    self._step_down()
        return self._cluster.deaths() if self._leads else []

    def close(self) -> None:
        self._cluster.close(end_workers=self._end_workers and self._leads)

    def _look(self) -> None:
        self._started_ms = self._started_ms or self._queue.now_ms()
        asked = self._clock()
        if self._queue.lead(self._name, self._started_ms, LEAD_MS):
            self._leads, self._lead_ends = True, asked + LEAD_MS / 1000
            self._grow()
            placed_workers.post(self._queue, self._cluster.workers)
        elif self._leads:
            self._step_down()

    def _step_down(self) -> None:
        self._leads = False
        self._cluster.close(end_workers=False)
        self._growth.clear()

    def _grow(self) -> None:
        if not self._growth:
            there = placed_workers.read(self._queue)
            self._growth = {group.name: Growth(_before(group, there)) for group in self._groups}
        growing = any(group.least < group.most for group in self._groups)
        backlog = self._queue.backlog() if growing else []
        sessions = self._queue.sessions() if growing else []
        # A job may have nothing left but its end, for which every worker will do.
        needed = growing and not sessions and self._queue.finalising() > 0
        able = (group for group in self._groups if group.least < group.most)
        finaliser = next(able) if needed else None
        for group in self._groups:
            wanted = workers_for(
                demand(group.served, backlog, sessions, finalises=group is finaliser),
                least=group.least,
                most=group.most,
                target_seconds=self._target_seconds,
            )
            grown = self._growth[group.name].then(wanted, self._clock(), self._shrink_seconds)
            self._growth[group.name] = grown
        self._cluster.want({name: growth.count for name, growth in self._growth.items()})


def _before(group: WorkerGroup, workers: Sequence[PlacedWorker]) -> int:
    """How many workers an earlier scheduler had of a group."""
    there = sum(
        worker.name.rpartition("-")[0] == group.name
        and worker.state not in (WorkerState.DRAINING, WorkerState.GONE)
        for worker in workers
    )
    return min(max(there, group.least), group.most)
