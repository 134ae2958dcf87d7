"""Whether jobs can be taken now: the queue and the store are written to, not only asked."""

import secrets
import threading
import time

from redis.exceptions import RedisError

from farm.errors import FarmError
from farm.queue import Queue
from farm.queue.connection import explain
from farm.store import Store

CHECK_SECONDS = 5.0  # anyone may ask, so an answer is kept for a while
MARK_SECONDS = 60  # life of what is written to the queue's server


class Readiness:
    """What is wrong with the queue and the store, if anything; looked at every few seconds."""

    def __init__(self, queue: Queue, store: Store) -> None:
        self._queue = queue
        self._store = store
        self._lock = threading.Lock()
        self._looked = -CHECK_SECONDS
        self._found: tuple[str | None, str | None] = (None, None)

    def problems(self) -> tuple[str | None, str | None]:
        """Of the queue and of the store; None where it can be written to."""
        with self._lock:
            if time.monotonic() - self._looked >= CHECK_SECONDS:
                self._found = self._queue_problem(), self._store_problem()
                self._looked = time.monotonic()
            return self._found

    def _queue_problem(self) -> str | None:
        try:
            self._queue.client.set(f"{{{self._queue.farm}}}:ready", 1, ex=MARK_SECONDS)
        except RedisError as error:
            return str(explain(error))
        return None

    def _store_problem(self) -> str | None:
        key = f"probe/ready-{secrets.token_hex(16)}"
        try:
            self._store.put(key, b"ready")
            self._store.delete(key)
        except FarmError as error:
            return str(error)
        return None
