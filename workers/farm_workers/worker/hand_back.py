"""Gives tasks back to the queue before they are done: to drain a worker, or for an idle one."""

from collections.abc import Iterable

from farm_workers.leased_task import LeasedTask, Outcome
from farm_workers.publisher.publisher import Publisher
from farm_workers.worker.engine_loop import EngineLoop
from farm_workers.worker.lease_table import LeaseTable


class HandBack:
    """For the thread that talks to the queue. A task that is handed back costs no attempt, and
    whoever renders it next takes over what is stored of it."""

    def __init__(self, leases: LeaseTable, engine_loop: EngineLoop, publisher: Publisher) -> None:
        self._leases = leases
        self._engine_loop = engine_loop
        self._publisher = publisher

    def unbegun(self, most: int | None = None) -> None:
        """Hand back so many tasks of which nothing has been rendered here, the newest first."""
        self._release(self._leases.unbegun[:most])

    def stop_rendering(self) -> None:
        """Finish no further row; what is finished is still stored."""
        for task in self._leases.tasks.values():
            task.halted = True
        self._leases.engines_wanted.set()

    def stored(self) -> None:
        """After ``stop_rendering``: hand back each task as soon as its finished rows are stored."""
        tasks = self._leases.tasks.values()
        self._release(
            task
            for task in tasks
            if task.halted and task.settled and not self._engine_loop.works_on(task)
        )

    def all(self) -> None:
        """Hand everything back, stored or not."""
        self._release(self._leases.tasks.values())

    def _release(self, tasks: Iterable[LeasedTask]) -> None:
        for task in tasks:
            if task.outcome is None:
                self._publisher.drop(task)  # before a successor can come
                self._leases.end(task, Outcome(None, "release", "its worker handed it back"))
