"""Whether jobs can be taken now: the queue and the store are written to, not only asked."""

import secrets
import threading
import time
from collections.abc import Callable

from farm.errors import FarmError, StoreError, Unavailable
from farm.queue import Queue
from farm.queue.connection import explained
from farm.store import Store

CHECK_SECONDS = 5.0  # anyone may ask, so an answer is kept for a while
PATIENCE_SECONDS = 5.0  # with a server that says nothing; its client tries for a minute and more
MARK_SECONDS = 60  # life of what is written to the queue's server


class Readiness:
    """What is wrong with the queue and the store, if anything; looked at every few seconds."""

    def __init__(self, queue: Queue, store: Store) -> None:
        self._queue = queue
        self._store = store
        self._queue_look = _Look(self._write_to_queue, Unavailable, "Redis")
        self._store_look = _Look(self._write_to_store, StoreError, store.url)

    def problems(self) -> tuple[str | None, str | None]:
        """Of the queue and of the store; None where it can be written to."""
        looks = self._queue_look, self._store_look
        for look in looks:
            look.begin()
        queue, store = (look.found() for look in looks)
        return queue, store

    @explained
    def _write_to_queue(self) -> None:
        self._queue.client.set(f"{{{self._queue.farm}}}:ready", 1, ex=MARK_SECONDS)

    def _write_to_store(self) -> None:
        key = f"probe/ready-{secrets.token_hex(16)}"
        self._store.put(key, b"ready")
        self._store.delete(key)


class _Look:
    """The last look at one of the two, in a thread of its own: the threads of all who ask would
    wait for one that says nothing, and none would be left for other calls."""

    def __init__(self, write: Callable[[], None], silent: type[FarmError], name: str) -> None:
        self._write, self._silent, self._name = write, silent, name
        self._lock = threading.Lock()
        self._over = threading.Event()  # of this look; the next one has its own
        self._over.set()
        self._began = -CHECK_SECONDS
        self._problem: str | None = None

    def begin(self) -> None:
        """Look again, if that is due and the look before is over."""
        with self._lock:
            if self._over.is_set() and time.monotonic() - self._began >= CHECK_SECONDS:
                self._over = threading.Event()
                self._began = time.monotonic()
                threading.Thread(
                    target=self._look, args=(self._over,), name="readiness", daemon=True
                ).start()

    def found(self) -> str | None:
        """What is wrong, as soon as it is known."""
        with self._lock:
            over, began = self._over, self._began
        if over.wait(max(began + PATIENCE_SECONDS - time.monotonic(), 0)):
            return self._problem
        seconds = time.monotonic() - began
        return str(self._silent(f"{self._name} has not answered for {seconds:.0f} s"))

    def _look(self, over: threading.Event) -> None:
        try:
            self._write()
        except FarmError as error:
            self._problem = str(error)
        else:
            self._problem = None
        finally:
            over.set()
