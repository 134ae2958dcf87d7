"""The publisher's process: encodes, hashes and uploads what its worker sends it.

It keeps nothing between messages but leases, and what a sink holds back lies in files. So its
worker can start another one at any time and send again whatever was not answered.
"""

import contextlib
import ctypes
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

from farm import garbage, logs
from farm.errors import FarmError, NotFound, StoreError
from farm.formats.encoding import encode
from farm.formats.manifest import write_part
from farm.sinks.early import forget_early, store_early
from farm.sinks.parts import store_part
from farm.sinks.protocol import TaskPlace
from farm.sinks.registry import Sinks
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
    StorePicture,
    StoreSuccess,
    StoreTask,
    TellEarly,
    Work,
)
from farm_workers.publisher.success import store_success

log = logging.getLogger(__name__)

FIRST_DELAY_SECONDS = 0.1
LAST_DELAY_SECONDS = 30.0
ALIVE_SECONDS = 1.0

Result = TypeVar("Result")


class _Dropped(Exception):
    """The worker has no more use for the task."""


class PublisherProcess:
    """Serves one worker over one connection."""

    def __init__(self, connection: "Connection[Any, Any]", begin: Begin) -> None:
        self._connection = connection
        # Between two attempts the lease is looked at, so they are made here, not inside the store.
        self._store: Store = open_store(begin.store, attempts=1)
        self._sinks = Sinks(self._store, begin.scratch)
        self._patience_seconds = begin.patience_seconds
        self._pool = ThreadPoolExecutor(begin.threads, thread_name_prefix="publish")
        # Behind hundreds of pictures that wait, readers would see the first ones late.
        self._teller = ThreadPoolExecutor(1, thread_name_prefix="tell")
        self._answering = threading.Lock()
        self._changed = threading.Condition()
        self._deadlines: dict[int, float] = {}
        self._held: set[int] = set()  # tasks that were named and not dropped
        self._early: dict[int, list[str]] = {}  # keys of their early rows
        self._whole: set[int] = set()  # tasks whose part is there: it says what early rows would

    def run(self) -> None:
        """Serve until the worker closes the connection or is gone."""
        write_part(())  # pyarrow loads pandas, where it is there, with the first table of all
        self._connection.send([Ready()])
        threading.Thread(target=self._show_life, name="alive", daemon=True).start()
        while True:
            light: dict[int, list[StorePicture]] = {}  # by task: one must not wait for another
            for message in self._connection.recv():
                pixels = None
                if isinstance(message, StorePicture) and message.shape is not None:
                    pixels = np.frombuffer(self._connection.recv_bytes(), np.uint8)
                    pixels = pixels.reshape(message.shape)
                self._note(message)
                if isinstance(message, StorePicture) and self._is_light(message):
                    light.setdefault(message.task, []).append(message)
                else:
                    self._take(message, pixels)
            for works in light.values():
                self._pool.submit(self._serve, [(work, None) for work in works])

    def _is_light(self, work: StorePicture) -> bool:
        """Whether it takes less time than a thread needs to wake: there is nothing to compress, and
        no store to wait for."""
        with contextlib.suppress(FarmError):  # an unknown sink is for the answer to tell
            return work.shape is None and self._sinks.get(work.place.sink).sharded
        return False

    def _show_life(self) -> None:
        """A process that was stopped says nothing, and is replaced."""
        with contextlib.suppress(OSError):  # the worker is gone, and so is this process soon
            while True:
                time.sleep(ALIVE_SECONDS)
                with self._answering:
                    self._connection.send([Alive()])

    def _note(self, message: Message) -> None:
        """Which tasks the worker holds, and until when."""
        with self._changed:
            if isinstance(message, Drop):  # the last message that names the task
                self._held.discard(message.task)
                self._deadlines.pop(message.task, None)
            else:
                self._held.add(message.task)
            if isinstance(message, LeaseUntil):
                self._deadlines[message.task] = message.deadline
            self._changed.notify_all()

    def _take(self, message: Message, pixels: NDArray[np.uint8] | None) -> None:
        if isinstance(message, Drop):
            self._forget(message.task, message.place)
        elif isinstance(message, TellEarly):
            self._teller.submit(self._tell_early, message)
        elif isinstance(message, Work):
            self._pool.submit(self._serve, [(message, pixels)])

    def _forget(self, task: int, place: TaskPlace | None) -> None:
        """Before any message of the task's next lease, which may need the same files."""
        self._early.pop(task, None)
        self._whole.discard(task)
        if place is not None:
            try:
                self._sinks.get(place.sink).forget(place)
            except Exception:  # files are left over; the task is not concerned
                log.exception("the sink %s failed to forget a task", place.sink)

    def _tell_early(self, told: TellEarly) -> None:
        """Whether it succeeds is of no consequence: the task's own part will say the same."""
        try:
            if told.task in self._held:
                key = store_early(self._store, told.place, told.attempt, told.rows)
                self._early.setdefault(told.task, []).append(key)
                if told.task in self._whole or told.task not in self._held:
                    self._store.delete(key)  # the part was faster
        except Exception as error:
            log.warning("pictures of a running task cannot be shown yet: %s", error)

    def _forget_early(self, task: int) -> None:
        self._whole.add(task)
        for key in self._early.pop(task, ()):
            with contextlib.suppress(FarmError):  # left over; readers look for the part first
                self._store.delete(key)

    def _serve(self, works: Sequence[tuple[Work, NDArray[np.uint8] | None]]) -> None:
        answers = [answer for one in works if (answer := self._answer(*one)) is not None]
        if answers:
            with self._answering:
                self._connection.send(answers)

    def _answer(self, work: Work, pixels: NDArray[np.uint8] | None) -> Stored | NotStored | None:
        """Do it; None if the worker has no more use for it."""
        try:
            if work.task not in self._held:
                return None
            return self._do(work, pixels)
        except _Dropped:
            return None
        except FarmError as error:
            return NotStored(work.number, error.to_dict())
        except MemoryError:  # no fault of the task's: it may succeed later, or elsewhere
            short = StoreError(f"there was too little memory to publish {work.subject}")
            return NotStored(work.number, short.to_dict())
        except Exception as error:
            log.exception("the publisher failed on %s", work.subject)
            failure = FarmError(f"cannot publish {work.subject}: {type(error).__name__}: {error}")
            return NotStored(work.number, failure.to_dict())

    def _do(self, work: Work, pixels: NDArray[np.uint8] | None) -> Stored:
        match work:
            case StorePicture(place=place, record=record):
                sink = self._sinks.get(place.sink)
                started = time.monotonic()
                tokens = np.frombuffer(work.tokens, np.uint16).reshape(work.token_shape)
                data = encode(pixels, record.facts(tokens), record.format)
                encoded = time.monotonic()
                row = self._try(work, lambda: sink.store_picture(place, record, data))
                return Stored(work.number, row, encoded - started, time.monotonic() - encoded)
            case StoreTask(place=place):
                sink, rows = self._sinks.get(place.sink), work.all_rows()
                receipt = self._try(
                    work, lambda: store_part(self._store, place, sink.store_task(place, rows))
                )
                self._forget_early(work.task)
                return Stored(work.number, receipt)
            case StoreSuccess(key=key, document=document):
                receipt = self._try(work, lambda: store_success(self._store, key, document))
                with contextlib.suppress(FarmError):  # left over, and it does no harm
                    forget_early(self._store, work.job)
                return Stored(work.number, receipt)

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
                if work.task in self._held:
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
    for number in (signal.SIGINT, signal.SIGTERM):  # told to all, but the worker's to handle
        signal.signal(number, signal.SIG_IGN)
    logs.configure("publisher", level=logging.WARNING)
    connection: Connection[Any, Any] = Connection(descriptor)
    try:
        begin = connection.recv()
        assert isinstance(begin, Begin)
        serving = PublisherProcess(connection, begin)
        garbage.relax()
        serving.run()
    except (EOFError, OSError):
        pass
    os._exit(0)  # at once: an upload that goes on would be one without a lease


if __name__ == "__main__":
    main()
