"""Spans of tasks for Ray's timeline, which its dashboard offers as a file.

Ray keeps spans that are recorded inside a call of an actor, from now until they are closed. Those
of a process stand in one row there, so they follow each other: a span ends when a task does, and
begins when the one before ended, or when the worker took up work. What the end of a call cuts off
goes on in the next call.
"""

import collections
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from farm_workers.leased_task import LeasedTask

KIND = "farm task"  # of the spans; Ray calls it their category
KEPT = 1000  # ended tasks that no call has shown yet; a worker without Ray has no calls

Facts = dict[str, str]
OpenSpan = Callable[[Facts], AbstractContextManager[object]]  # it reads the facts when it is closed


class Timeline:
    """Thread-safe. Hears which tasks a worker holds; ``follow`` shows it to Ray."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._ended: collections.deque[Facts] = collections.deque(maxlen=KEPT)
        self._held: dict[int, str] = {}  # by the number of the lease: the task
        self._over = False
        self._followed = threading.Lock()

    def began(self, task: LeasedTask) -> None:
        """The worker holds one more task."""
        with self._news:
            self._held[task.number] = task.key
            self._news.notify_all()

    def ended(self, task: LeasedTask) -> None:
        """The worker does not hold it any more."""
        with self._news:
            self._held.pop(task.number, None)
            self._ended.append(_facts(task))
            self._news.notify_all()

    def close(self) -> None:
        """The worker has ended."""
        with self._news:
            self._over = True
            self._news.notify_all()

    def follow(self, seconds: float, open_span: OpenSpan) -> bool:
        """Return after so many seconds, or when the worker has ended: whether it has. Meanwhile one
        of the calls that wait here records spans."""
        deadline = time.monotonic() + seconds
        if self._followed.acquire(blocking=False):
            try:
                while self._record(deadline, open_span):
                    pass
            finally:
                self._followed.release()
        else:
            self._wait(lambda: False, deadline)
        return self._over

    def _record(self, deadline: float, open_span: OpenSpan) -> bool:
        """One span; False if there was none until the deadline."""
        self._wait(lambda: self._held or self._ended, deadline)
        late = self._over or time.monotonic() >= deadline
        if not self._ended and (late or not self._held):
            return False
        facts: Facts = {}
        with open_span(facts):
            self._wait(lambda: self._ended, deadline)
            with self._news:
                facts |= self._ended.popleft() if self._ended else self._at_work()
        return True

    def _at_work(self) -> Facts:
        tasks = list(self._held.values())
        more = f" and {len(tasks) - 1} more" if len(tasks) > 1 else ""
        return {"name": f"at work on {', '.join(tasks[:1])}{more}", "tasks": " ".join(tasks)}

    def _wait(self, condition: Callable[[], object], deadline: float) -> None:
        """Until the condition, the deadline or the end of the worker."""
        with self._news:
            self._news.wait_for(lambda: condition() or self._over, deadline - time.monotonic())


def _facts(task: LeasedTask) -> Facts:
    lease = task.lease
    failed = f", {task.failed} failed" if task.failed else ""
    seconds = time.monotonic() - task.since
    drawn = f"{task.stored} pictures in {seconds:.1f} s{failed}"
    what = drawn if lease.lane else "its job is finalised"
    if task.outcome is None:
        outcome = "cancelled" if task.cut_short else "dropped"
    else:
        outcome = "done" if task.outcome.receipt else f"{task.outcome.kind}: {task.outcome.reason}"
    return {
        "name": f"task {task.key}: {what}",
        "job": lease.job,
        "task": task.key,
        "lane": lease.lane,
        "pictures": str(task.stored),
        "failed": str(task.failed),
        "attempt": str(lease.attempt),
        "outcome": outcome,
    }
