"""What the queue says of workers, read once for all who ask at about the same time."""

import threading
import time
from collections.abc import Callable

from farm.queue import Queue
from farm.queue.messages import Session

# That a look is kept, for each session: 2 s of 1,000 workers, whose look takes a fifth of a second.
KEPT_SECONDS = 0.002
# How much older it may be while another caller looks. After a pause no one has looked for longer,
# and there may be other workers by now.
OLDER_SECONDS = 1.0


class WorkerSessions:
    """Submissions, pages, metrics and questions whether the farm is ready ask for them."""

    def __init__(self, queue: Queue, clock: Callable[[], float] = time.monotonic) -> None:
        self._queue = queue
        self._clock = clock
        self._looking = threading.Lock()
        self._found: list[Session] | None = None
        self._kept_until = 0.0

    def __call__(self) -> list[Session]:
        """All of them. While one caller looks again, others get what was found shortly before.

        Raises:
            Unavailable: the queue does not answer.
        """
        found = self._found
        age = self._clock() - self._kept_until
        if found is not None and age < 0:
            return found
        if not self._looking.acquire(blocking=found is None or age >= OLDER_SECONDS):
            assert found is not None
            return found
        try:
            if self._found is None or self._clock() >= self._kept_until:
                self._found = self._queue.sessions()
                self._kept_until = self._clock() + KEPT_SECONDS * len(self._found)
            return self._found
        finally:
            self._looking.release()
