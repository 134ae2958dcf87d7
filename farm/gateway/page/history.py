"""What the farm looked like in the last minutes, for the page's charts."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from farm.errors import FarmError
from farm.queue import Queue, Session

EVERY_SECONDS = 5.0
KEPT = 120  # ten minutes


class Sample(NamedTuple):
    queued: int  # pictures that no worker holds
    workers: int
    row_steps: float  # a second, as the workers measure it


class History:
    """Looks at the queue every few seconds, in a thread, while the gateway runs."""

    def __init__(self, queue: Queue, sessions: Callable[[], Sequence[Session]]) -> None:
        self._queue = queue
        self._sessions = sessions
        self._samples: deque[Sample] = deque(maxlen=KEPT)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def samples(self) -> list[Sample]:
        """From the oldest to the newest."""
        return list(self._samples)

    def look(self) -> None:
        try:
            sessions = self._sessions()
            queued = sum(work.pictures for work in self._queue.backlog())
        except FarmError:
            return  # a gap in a chart; the page says that the queue does not answer
        pace = sum(max(one.paces.values(), default=0.0) for one in sessions if one.held)
        self._samples.append(Sample(queued, len(sessions), pace))

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.look()
            self._stopping.wait(EVERY_SECONDS)
