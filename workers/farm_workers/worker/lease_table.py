"""What a worker has aboard: leases that have arrived, tasks at work, tasks on their way out."""

import threading

from farm.job import Lease, Priority
from farm.queue import Progress
from farm_workers.worker.leased_task import LeasedTask


class LeaseTable:
    """Thread-safe. A lease is in one of three places, or not aboard.

    Assignments belong to the main loop; other threads read their counters through this.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrived: dict[str, Lease] = {}  # its content is being loaded
        self._at_work: dict[str, LeasedTask] = {}
        self._leaving: dict[str, Lease] = {}  # with the publisher or on the way to the queue

    def arrive(self, lease: Lease) -> bool:
        """Take a lease aboard; False if it is there already."""
        with self._lock:
            if lease.key in self._arrived.keys() | self._at_work.keys() | self._leaving.keys():
                return False
            self._arrived[lease.key] = lease
            return True

    def start(self, assignment: LeasedTask) -> bool:
        """Its content is there. False if it was dropped; granted again, it is another lease."""
        with self._lock:
            if self._arrived.get(assignment.key) is not assignment.lease:
                return False
            del self._arrived[assignment.key]
            self._at_work[assignment.key] = assignment
            return True

    def skip(self, lease: Lease) -> bool:
        """Nothing has to be rendered of it; it leaves as soon as the queue has heard how it ended.

        False if it was dropped while it was loaded; the task may be aboard under a newer lease.
        """
        with self._lock:
            if self._arrived.get(lease.key) is not lease:
                return False
            del self._arrived[lease.key]
            self._leaving[lease.key] = lease
            return True

    def leave(self, key: str) -> tuple[Lease | None, LeasedTask | None]:
        """Nothing more is rendered of what was at work; the queue has to hear how it ended."""
        with self._lock:
            assignment = self._at_work.pop(key, None)
            if assignment is not None:
                self._leaving[key] = assignment.lease
            return self._leaving.get(key), assignment

    def left(self, key: str) -> None:
        """The queue has heard of it."""
        with self._lock:
            self._leaving.pop(key, None)

    def drop(self, key: str) -> LeasedTask | None:
        """It is not ours any more, wherever it is; returns what was at work of it."""
        with self._lock:
            self._arrived.pop(key, None)
            self._leaving.pop(key, None)
            return self._at_work.pop(key, None)

    def assignment(self, key: str) -> LeasedTask | None:
        return self._at_work.get(key)

    @property
    def assignments(self) -> list[LeasedTask]:
        """What is at work, in the order in which it came."""
        with self._lock:
            return list(self._at_work.values())

    @property
    def keys(self) -> set[str]:
        """All that is aboard."""
        with self._lock:
            return {*self._arrived, *self._at_work, *self._leaving}

    def progress(self) -> dict[str, Progress]:
        """How far the tasks at work are."""
        with self._lock:
            return {
                key: Progress(task.stored, task.failed, task.at_place)
                for key, task in self._at_work.items()
            }

    def told(self, progress: dict[str, Progress]) -> None:
        """The queue knows now which rows are about to run alone."""
        with self._lock:
            for key in progress.keys() & self._at_work.keys():
                if progress[key].row is not None:
                    self._at_work[key].told_place = progress[key].row

    def outstanding(self, *, urgent_only: bool = False) -> int:
        """Pictures that are still to be rendered."""
        with self._lock:
            left = [
                (task.lease, task.pictures - task.handed_over) for task in self._at_work.values()
            ] + [(lease, lease.pictures) for lease in self._arrived.values()]
        return sum(
            pictures
            for lease, pictures in left
            if not urgent_only or lease.priority is Priority.URGENT
        )
