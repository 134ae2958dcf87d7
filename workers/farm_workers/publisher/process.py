"""The publisher's process: encodes, hashes and uploads what its worker sends it.

It keeps nothing between messages but leases, so its worker can start another one at any time and
send again whatever was not answered.
"""

import contextlib
import ctypes
import hashlib
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from farm.errors import FarmError, NotFound, StoreError
from farm.formats.manifest import ManifestRow, part_receipt, read_part, write_part
from farm.job import Receipt
from farm.store import Store, open_store
from farm_workers.publisher.messages import (
    Alive,
    Begin,
    Drop,
    LeaseUntil,
    Message,
    NotStored,
    Ready,
    Stored,
    StorePart,
    StorePicture,
    StoreSuccess,
    Work,
)
from farm_workers.publisher.record import encode_picture, store_picture

log = logging.getLogger(__name__)

FIRST_DELAY_SECONDS = 0.1
LAST_DELAY_SECONDS = 30.0
ALIVE_SECONDS = 1.0

Result = TypeVar("Result")


class _Dropped(Exception):
    """The worker has no more use for the task."""


class PublisherProcess:
    def __init__(self, connection: "Connection[Any, Any]", begin: Begin) -> None:
        self._connection = connection
        # Between two attempts the lease is looked at, so they are made here, not inside the store.
        self._store: Store = open_store(begin.store, attempts=1)
        self._patience_seconds = begin.patience_seconds
        self._pool = ThreadPoolExecutor(begin.threads, thread_name_prefix="publish")
        self._answering = threading.Lock()
        self._changed = threading.Condition()
        self._deadlines: dict[int, float] = {}
        self._held: set[int] = set()  # tasks that were named and not dropped

    def run(self) -> None:
        """Serve until the worker closes the connection or is gone."""
        self._connection.send(Ready())
        threading.Thread(target=self._show_life, name="alive", daemon=True).start()
        while True:
            message = self._connection.recv()
            pixels = None
            if isinstance(message, StorePicture) and message.shape is not None:
                pixels = np.frombuffer(self._connection.recv_bytes(), np.uint8)
                pixels = pixels.reshape(message.shape)
            self._take(message, pixels)

    def _show_life(self) -> None:
        """A process that was stopped says nothing, and is replaced."""
        with contextlib.suppress(OSError):  # the worker is gone, and so is this process soon
            while True:
                time.sleep(ALIVE_SECONDS)
                with self._answering:
                    self._connection.send(Alive())

    def _take(self, message: Message, pixels: NDArray[np.uint8] | None) -> None:
        with self._changed:
            if isinstance(message, Drop):  # the last message that names the task
                self._held.discard(message.task)
                self._deadlines.pop(message.task, None)
            else:
                self._held.add(message.task)
            if isinstance(message, LeaseUntil):
                self._deadlines[message.task] = message.deadline
            self._changed.notify_all()
        if isinstance(message, Work):
            self._pool.submit(self._serve, message, pixels)

    def _serve(self, work: Work, pixels: NDArray[np.uint8] | None) -> None:
        answer: Stored | NotStored
        try:
            if work.task not in self._held:
                return
            answer = Stored(work.number, self._do(work, pixels))
        except _Dropped:
            return
        except FarmError as error:
            answer = NotStored(work.number, error.to_dict())
        except Exception as error:
            log.exception("the publisher failed on %s", work.key)
            failure = FarmError(f"cannot publish {work.key}: {type(error).__name__}: {error}")
            answer = NotStored(work.number, failure.to_dict())
        with self._answering:
            self._connection.send(answer)

    def _do(self, work: Work, pixels: NDArray[np.uint8] | None) -> ManifestRow | Receipt:
        match work:
            case StorePicture(key=key, record=record):
                tokens = np.frombuffer(work.tokens, np.uint16).reshape(work.token_shape)
                data = encode_picture(record, pixels, tokens)
                return self._try(work, lambda: store_picture(self._store, key, record, data))
            case StorePart(key=key, rows=rows):
                return self._try(work, lambda: store_part(self._store, key, rows))
            case StoreSuccess(key=key, document=document):
                return self._try(work, lambda: store_success(self._store, key, document))

    def _try(self, work: Work, action: Callable[[], Result]) -> Result:
        """Do it while the lease holds; a store that fails is asked again for a long time."""
        give_up = time.monotonic() + self._patience_seconds
        delay = FIRST_DELAY_SECONDS
        while True:
            self._await_lease(work.task)
            try:
                return action()
            except (StoreError, NotFound) as error:  # NotFound: what took the key is gone again
                if time.monotonic() > give_up:
                    raise
                log.warning("%s; trying again", error)
            with self._changed:
                self._changed.wait_for(
                    lambda: work.task not in self._held, timeout=random.random() * delay
                )
            delay = min(2 * delay, LAST_DELAY_SECONDS)

    def _await_lease(self, task: int) -> None:
        """Return while the worker holds the task; a task without a deadline is always held."""
        with self._changed:
            while task in self._held:
                if self._deadlines.get(task, float("inf")) > time.monotonic():
                    return
                self._changed.wait()
        raise _Dropped


def store_part(store: Store, key: str, rows: tuple[ManifestRow, ...]) -> Receipt:
    """Write a task's manifest; if there is one already, that one counts."""
    data = write_part(rows)
    kept: Sequence[ManifestRow] = rows
    if not store.put(key, data, content_type="application/vnd.apache.parquet"):
        data = store.get(key)
        kept = read_part(data)
    return part_receipt(key, data, kept)


def store_success(store: Store, key: str, document: bytes) -> Receipt:
    """Write the object that says that a job is complete; the first one counts."""
    if not store.put(key, document, content_type="application/json"):
        document = store.get(key)
    return Receipt(
        done=0,
        failed=0,
        size=len(document),
        part=key,
        part_sha256=hashlib.sha256(document).hexdigest(),
        numerics="",
    )


def _die_with(parent: int) -> None:
    """End when the worker ends, even if something else keeps its end of the connection open."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)


def main() -> None:
    descriptor, parent = map(int, sys.argv[1:])
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the worker's to handle
    logging.basicConfig(format="%(asctime)s publisher %(levelname)s %(message)s")
    connection: Connection[Any, Any] = Connection(descriptor)
    try:
        begin = connection.recv()
        assert isinstance(begin, Begin)
        PublisherProcess(connection, begin).run()
    except (EOFError, OSError):
        pass
    os._exit(0)  # at once: an upload that goes on would be one that nobody holds a lease for


if __name__ == "__main__":
    main()
