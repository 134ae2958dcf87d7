"""One reader of the farm's events per gateway, and the listeners it wakes."""

import asyncio
import contextlib
import json
import logging
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from anyio.to_thread import run_sync

from farm.errors import FarmError
from farm.job import TERMINAL_JOBS
from farm.queue import Queue

log = logging.getLogger(__name__)

BLOCK_MS = 1500  # redis-py gives up a blocked call after 5 s
GAP_SECONDS = 0.25  # between two updates of one listener; closer ones are joined
POLL_SECONDS = 0.5  # progress inside a task makes no event
COMMENT_SECONDS = 15.0  # keeps proxies from closing a quiet stream


class EventHub:
    """Reads the stream in a thread and wakes those who listen to a job.

    Args:
        queue: whose events.
        note_cancelled: called with each job that was cancelled, by the queue itself as well and
            while no gateway was there.
    """

    def __init__(self, queue: Queue, note_cancelled: Callable[[str], None]) -> None:
        self._queue = queue
        self._note = note_cancelled
        self._listeners: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._read, name="events", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    @contextlib.contextmanager
    def listen(self, job: str) -> Iterator[asyncio.Event]:
        woken = asyncio.Event()
        self._listeners[job].add(woken)
        try:
            yield woken
        finally:
            self._listeners[job].discard(woken)
            if not self._listeners[job]:
                del self._listeners[job]

    def _read(self) -> None:
        after = None
        while not self._stopping.is_set():
            try:
                after = after or self._queue.last_event()
                events = self._queue.events(after, BLOCK_MS)
            except FarmError as error:
                if self._stopping.is_set():
                    return
                log.warning("events cannot be read, trying again: %s", error)
                self._stopping.wait(1.0)
                continue
            if events:
                after = events[-1].id
                self._wake({event.job for event in events})
            self._note_cancelled({one.job for one in events if one.kind == "cancelled"})

    def _note_cancelled(self, heard: set[str]) -> None:
        try:
            for job in heard.union(self._queue.cancelled()):
                self._note(job)
        except FarmError as error:
            log.warning("cancelled jobs could not be noted, trying again: %s", error)

    def _wake(self, jobs: set[str]) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._set, jobs)

    def _set(self, jobs: set[str]) -> None:
        for job in jobs & self._listeners.keys():
            for woken in self._listeners[job]:
                woken.set()


async def updates(
    hub: EventHub, queue: Queue, job: str, tenant: Callable[[], str]
) -> AsyncIterator[bytes]:
    """The job as it is, then each time it changed, until it has ended.

    Args:
        tenant: who listens; raises ``NotAllowed`` once the key has expired or was revoked.
    """
    last: dict[str, Any] | None = None
    quiet = 0.0
    with hub.listen(job) as woken:
        while True:
            woken.clear()
            try:
                status = await run_sync(queue.status, job, tenant())
            except FarmError as error:
                log.warning("events of job %s end: %s", job, error)
                return  # the client connects again and is then told what is wrong
            view = status.model_dump(mode="json")
            if view != last:
                yield sse("status", view)
                last, quiet = view, 0.0
            elif quiet >= COMMENT_SECONDS:
                yield b": still here\n\n"
                quiet = 0.0
            if status.state in TERMINAL_JOBS:
                yield sse("end", {"state": status.state})
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(woken.wait(), POLL_SECONDS)
            await asyncio.sleep(GAP_SECONDS)
            quiet += POLL_SECONDS + GAP_SECONDS


def sse(event: str, data: dict[str, Any]) -> bytes:
    return f"event: {event}\ndata: {json.dumps(data)}\n\n".encode()
