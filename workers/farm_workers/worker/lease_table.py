"""The leases that a worker holds."""

import math
import threading
import time
from collections.abc import Mapping

from farm.job import Lease
from farm.queue import Progress
from farm_workers.leased_task import LeasedTask, Outcome
from farm_workers.worker.timeline import Timeline


class LeaseTable:
    """Thread-safe. At most one lease of each task, from its grant until the queue knows its end.

    Args:
        capacity: pictures that the worker takes at a time.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.engines_wanted = threading.Event()  # there is news for the engine loop
        self.queue_wanted = threading.Event()  # there is something to tell the queue
        self.lease_end = math.inf  # of all of them, on the monotonic clock
        self.server_away = False  # the last call found that the queue's server does not run
        self.timeline = Timeline()
        self._lock = threading.Lock()
        self._tasks: dict[str, LeasedTask] = {}

    def add(self, lease: Lease) -> LeasedTask | None:
        """Take a lease that was granted; None if a lease of this task is held already."""
        with self._lock:
            if lease.key in self._tasks:
                return None
            task = self._tasks[lease.key] = LeasedTask(lease)
            self.timeline.began(task)
            return task

    def holds(self, task: LeasedTask) -> bool:
        """Whether there is still something to do for this lease."""
        with self._lock:
            over = task.outcome is not None or task.cut_short or task.halted
            return self._holds(task) and not over

    def end(self, task: LeasedTask, outcome: Outcome) -> bool:
        """Nothing more of it is rendered, and the queue has to hear why.

        False if it has been dropped or has ended before.
        """
        with self._lock:
            if not self._holds(task) or task.outcome is not None:
                return False
            task.outcome = outcome
        self.engines_wanted.set()
        self.queue_wanted.set()
        return True

    def remove(self, task: LeasedTask) -> None:
        """The queue knows how it ended, or it is not ours any more."""
        with self._lock:
            if self._holds(task):
                del self._tasks[task.key]
                self.timeline.ended(task)
        self.engines_wanted.set()

    def announce(self, task: LeasedTask, row: int) -> None:
        """This row runs next, as soon as the queue has heard of it."""
        if task.next_row != row:
            task.next_row = row
            self.queue_wanted.set()

    @property
    def expired(self) -> bool:
        """Whether the leases have run out, so that others may have these tasks.

        A server that does not run ends no lease, and gives each session one more when it is back.
        """
        return time.monotonic() > self.lease_end and not self.server_away

    @property
    def unbegun(self) -> list[LeasedTask]:
        """Tasks with pictures of which nothing has been rendered here, the newest first."""
        tasks = reversed(self.tasks.values())
        return [task for task in tasks if task.pictures and not task.begun and self.holds(task)]

    @property
    def tasks(self) -> dict[str, LeasedTask]:
        """All of them by key, in the order of their grants."""
        with self._lock:
            return dict(self._tasks)

    @property
    def ended(self) -> list[tuple[LeasedTask, Outcome]]:
        """Those of whose end the queue has to hear."""
        tasks = self.tasks.values()
        return [(task, task.outcome) for task in tasks if task.outcome is not None]

    @property
    def unannounced(self) -> bool:
        """Whether a row waits until the queue has heard of it."""
        return any(
            task.next_row is not None and task.next_row != task.announced_row
            for task in self.tasks.values()
        )

    def progress(self) -> dict[str, Progress]:
        """How far the tasks are that are being rendered."""
        return {
            task.key: Progress(task.stored, task.failed, task.next_row)
            for task in self.tasks.values()
            if task.place is not None and task.outcome is None and not task.cut_short
        }

    def announced(self, progress: Mapping[str, Progress]) -> None:
        """The queue has heard this."""
        for key, task in self.tasks.items():
            if key in progress and progress[key].row is not None:
                task.announced_row = progress[key].row

    @property
    def left(self) -> int:
        """Row-steps that are still to be done, as far as pictures tell."""
        tasks = [task for task in self.tasks.values() if task.pictures]
        return sum(task.lease.cost * task.to_render // task.pictures for task in tasks)

    def room(self, *, urgent: bool = False) -> int:
        """Pictures that can be granted now; with ``urgent``, to urgent tasks."""
        held = sum(task.to_render for task in self.tasks.values() if task.urgent or not urgent)
        return max(self.capacity - held, 0)

    def _holds(self, task: LeasedTask) -> bool:
        return self._tasks.get(task.key) is task
