"""Gives tasks back to the queue before they are done: to drain a worker, or for an idle one."""

from collections.abc import Iterable

from farm_workers.leased_task import LeasedTask, Outcome
from farm_workers.publisher.publisher import Publisher
from farm_workers.worker.engine_loop import EngineLoop
from farm_workers.worker.lease_table import LeaseTable


class HandBack:
    """For the thread that talks to the queue. A task is stopped first, and goes back when its rows
    have left the engine and what was finished of it is stored: so nothing finished is rendered
    again, whichever worker gets the task next. It costs no attempt."""

    def __init__(self, leases: LeaseTable, engine_loop: EngineLoop, publisher: Publisher) -> None:
        self._leases = leases
        self._engine_loop = engine_loop
        self._publisher = publisher

    def stop_unbegun(self, most: int | None = None) -> None:
        """Stop so many tasks of which nothing has been rendered here, the newest first."""
        self._stop(self._leases.unbegun[:most])

    def stop_all(self) -> None:
        """Finish no further row; what is finished is still stored."""
        self._stop(self._leases.tasks.values())

    @property
    def pending(self) -> bool:
        """Whether there are stopped tasks that are still held."""
        return any(task.halted for task in self._leases.tasks.values())

    def release(self, *, at_once: bool = False) -> None:
        """Hand back the stopped tasks that are stored as far as they got; at once: all of them."""
        for task in self._leases.tasks.values():
            running = task.begun and self._engine_loop.works_on(task)
            settled = task.settled and not running
            if task.halted and task.outcome is None and (settled or at_once):
                self._publisher.drop(task)  # before a successor can come
                self._leases.end(task, Outcome(None, "release", "its worker handed it back"))

    def _stop(self, tasks: Iterable[LeasedTask]) -> None:
        for task in tasks:
            task.halted = True
        self._leases.engines_wanted.set()
