"""Deletes what removed jobs have in the store, beside the scheduler's loop."""

import logging
import threading

from farm.errors import FarmError
from farm.ingest.removal import Remover
from farm.queue import Queue
from farm.store import Store

log = logging.getLogger(__name__)

PAUSE_SECONDS = 2.0  # between two looks


class Sweeper:
    """Finishes removals: of jobs whose time to be kept is over, and those that were interrupted.

    Several may run at once; a pass that is killed is repeated.

    Args:
        queue: with a client of its own.
        store: the farm's.
    """

    def __init__(self, queue: Queue, store: Store) -> None:
        self._remover = Remover(queue, store)

    def start(self, stopped: threading.Event) -> None:
        threading.Thread(target=self._run, args=(stopped,), name="sweeper", daemon=True).start()

    def _run(self, stopped: threading.Event) -> None:
        while not stopped.wait(PAUSE_SECONDS):
            try:
                self._remover.sweep()
            except FarmError as error:
                log.warning("removed jobs are not deleted yet: %s", error)
            except Exception:  # such as no memory for one more thread; the next look may succeed
                log.exception("removed jobs are not deleted yet")
