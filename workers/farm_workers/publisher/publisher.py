"""The worker's side of its publisher: a child process that encodes, hashes and uploads."""

import contextlib
import itertools
import logging
import queue as queues
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from farm.errors import FarmError, StoreError, from_dict
from farm.formats.manifest import ManifestRow
from farm.formats.picture_file import token_bytes
from farm.formats.picture_record import PictureRecord
from farm.job import Receipt
from farm.sinks.protocol import TaskPlace
from farm.spec import canonical_json
from farm.store import keys, open_store
from farm_workers.publisher.messages import (
    Begin,
    Drop,
    LeaseUntil,
    NotStored,
    Ready,
    Stored,
    StorePicture,
    StoreSuccess,
    StoreTask,
)
from farm_workers.publisher.outbox import Outbox, PendingUpload
from farm_workers.publisher.pipe import ProcessPipe

log = logging.getLogger(__name__)

S3_THREADS = 8
LOCAL_THREADS = 4
PATIENCE_SECONDS = 3600.0  # a store that fails is asked again for that long
MAX_DEATHS = 3  # of the process with one piece of work aboard, then the work is given up
SENT_BYTES = 64 * 2**20  # with the process and not answered; nothing urgent waits behind more
IDLE_TASK_SECONDS = 600.0  # after its deadline, a task of which nothing came is forgotten
MAX_FAILED_STARTS = 5  # in a row, then what waits is given up
RESTART_SECONDS = 0.1  # twice that after each failed start
MAX_RESTART_SECONDS = 5.0


class Event(NamedTuple):
    """``picture``: one more is stored. ``finished`` and ``failed`` are a task's last events."""

    task_key: str
    kind: Literal["picture", "finished", "failed"]
    receipt: Receipt | None = None  # of a finished task
    error: FarmError | None = None  # why the task failed
    stored: int = 0  # pictures of the task by now


class _Task:
    """One life of a task in the worker; leased again after a drop, it is another one."""

    def __init__(self, number: int, key: str) -> None:
        self.number = number
        self.key = key
        self.deadline: float | None = None
        self.working = False  # something of it was handed over
        self.urgent = False
        self.rows: list[ManifestRow] = []
        self.stored = 0
        self.whole: tuple[TaskPlace, int] | None = None  # and how many pictures it must have


class Publisher:
    """Thread-safe. What was handed over survives the process's death: a new one gets it again.

    Args:
        store_url: as ``open_store`` takes it.
        scratch: a folder of this publisher alone, for what sinks hold back; emptied at the start
            and removed at the end. By default a temporary one.
        threads: uploads at a time; by default what suits the store.
        patience_seconds: how long a failing store is asked again before a task fails.
    """

    def __init__(
        self,
        store_url: str,
        *,
        scratch: Path | None = None,
        threads: int | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        url = open_store(store_url).url  # a bad one is refused here, not in the process
        default = S3_THREADS if url.startswith("s3:") else LOCAL_THREADS
        self._scratch = scratch or Path(tempfile.mkdtemp(prefix="farm-publisher-"))
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._begin = Begin(url, self._scratch, threads or default, patience_seconds)
        self._events: queues.SimpleQueue[Event] = queues.SimpleQueue()
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._tasks: dict[str, _Task] = {}
        self._by_number: dict[int, _Task] = {}
        self._parcels: dict[int, PendingUpload] = {}  # not answered, in the order they were queued
        self._outbox = Outbox()
        self._link: ProcessPipe | None = None
        self._ready = False  # the process takes work
        self._pending_bytes = self._sent_bytes = 0
        self._closed = False
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for target, name in ((self._supervise, "publisher"), (self._send, "publisher-send"))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pending_bytes(self) -> int:
        """What is handed over and not stored yet; a worker stops rendering when it is too much."""
        return self._pending_bytes

    @property
    def pid(self) -> int | None:
        """Of the process; None while there is none."""
        link = self._link
        return link.pid if link else None

    def lease_until(self, task_key: str, deadline: float) -> None:
        """Nothing of the task is written after ``deadline``, a time of ``time.monotonic``.

        A task that was never given a deadline is written at any time.
        """
        with self._changed:
            task = self._task(task_key, working=False)
            task.deadline = deadline
            self._outbox.orders.append(LeaseUntil(task.number, deadline))
            self._changed.notify_all()

    def picture(
        self,
        task_key: str,
        place: TaskPlace,
        record: PictureRecord,
        pixels: NDArray[np.uint8] | None,
        tokens: NDArray[np.integer],
        *,
        urgent: bool = False,
    ) -> None:
        """Queue one picture. The arrays must not be changed afterwards.

        Whatever follows of an urgent picture's task is urgent too.
        """
        view = None
        if pixels is not None:
            pixels = np.ascontiguousarray(pixels, dtype=np.uint8)
            view = pixels.data.cast("B")
        with self._changed:
            task = self._task(task_key)
            task.urgent |= urgent
            work = StorePicture(
                number=next(self._numbers),
                task=task.number,
                place=place,
                record=record,
                shape=None if pixels is None else pixels.shape,
                tokens=token_bytes(tokens),
                token_shape=tokens.shape,
            )
            self._queue(PendingUpload(work, urgent=task.urgent, pixels=view))

    def failed_picture(self, task_key: str, record: PictureRecord, error: FarmError) -> None:
        """A picture that could not be made; it goes into the manifest only."""
        with self._changed:
            task = self._task(task_key)
            task.rows.append(record.failed_row(error))
            self._queue_whole(task)

    def found_picture(self, task_key: str, row: ManifestRow) -> None:
        """A picture that lies in the store since an earlier life of the task."""
        with self._changed:
            task = self._task(task_key)
            task.rows.append(row)
            task.stored += 1
            self._queue_whole(task)

    def finish(self, task_key: str, place: TaskPlace, pictures: int) -> None:
        """Store the task as a whole as soon as that many pictures are stored or failed."""
        with self._changed:
            task = self._task(task_key)
            task.whole = (place, pictures)
            self._queue_whole(task)

    def finalise(
        self,
        task_key: str,
        job: str,
        generation: int,
        parts: Iterable[tuple[str, str]],
        counts: Mapping[str, int] | None = None,
    ) -> None:
        """Write the job's ``_SUCCESS``: its parts with their sha256, and what was counted."""
        ordered = sorted(parts)
        document = {
            "v": 1,
            "job": job,
            "generation": generation,
            "counts": {"parts": len(ordered), **(counts or {})},
            "parts": [{"key": key, "sha256": sha256} for key, sha256 in ordered],
        }
        with self._changed:
            work = StoreSuccess(
                next(self._numbers),
                self._task(task_key).number,
                keys.success(job, generation),
                canonical_json(document).encode(),
            )
            self._queue(PendingUpload(work, urgent=True))

    def drop(self, task_key: str) -> None:
        """Forget a task: what has not begun to be uploaded never is, and no event follows."""
        with self._changed:
            if task := self._tasks.get(task_key):
                self._forget(task)

    def poll(self, timeout: float) -> list[Event]:
        """What has happened, in order; waits up to ``timeout`` seconds for the first event.

        Raises:
            RuntimeError: one of its threads has died, and nothing would ever happen again.
        """
        if not self._closed and not all(thread.is_alive() for thread in self._threads):
            raise RuntimeError("a thread of the publisher has died")
        events = []
        try:
            events.append(self._events.get(timeout=timeout) if timeout > 0 else None)
            while True:
                events.append(self._events.get_nowait())
        except queues.Empty:
            return [event for event in events if event is not None]

    def close(self) -> None:
        """End the process at once; what is not stored yet is not."""
        with self._changed:
            self._closed = True
            if self._link is not None:
                self._link.kill()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        shutil.rmtree(self._scratch, ignore_errors=True)

    # Everything below is called with the lock held, but for the two threads' own loops.

    def _task(self, key: str, *, working: bool = True) -> _Task:
        task = self._tasks.get(key)
        if task is None:
            self._forget_idle()
            task = _Task(next(self._numbers), key)
            self._tasks[key] = self._by_number[task.number] = task
        task.working |= working
        return task

    def _forget_idle(self) -> None:
        """Leases of finished tasks may be extended a last time, before the queue has heard."""
        before = time.monotonic() - IDLE_TASK_SECONDS
        for task in list(self._tasks.values()):
            if not task.working and task.deadline is not None and task.deadline < before:
                self._forget(task)

    def _queue(self, parcel: PendingUpload) -> None:
        self._parcels[parcel.work.number] = parcel
        self._pending_bytes += parcel.size
        self._outbox.add(parcel)
        self._changed.notify_all()

    def _queue_whole(self, task: _Task) -> None:
        if task.whole is None:
            return
        place, pictures = task.whole
        if len(task.rows) >= pictures:
            task.whole = None
            work = StoreTask(next(self._numbers), task.number, place, tuple(task.rows))
            self._queue(PendingUpload(work, urgent=task.urgent))

    def _forget(self, task: _Task) -> None:
        del self._tasks[task.key], self._by_number[task.number]
        gone = [parcel for parcel in self._parcels.values() if parcel.work.task == task.number]
        for parcel in gone:
            self._take(parcel.work.number)
        self._outbox.forget(task.number)
        self._outbox.orders.append(Drop(task.number))
        self._changed.notify_all()

    def _take(self, number: int) -> PendingUpload | None:
        parcel = self._parcels.pop(number, None)
        if parcel is not None:
            self._pending_bytes -= parcel.size
            if parcel.sent is not None:
                self._sent_bytes -= parcel.size
                self._changed.notify_all()
        return parcel

    def _answered(self, answer: Stored | NotStored) -> None:
        parcel = self._take(answer.number)
        task = self._by_number.get(parcel.work.task) if parcel else None
        if task is None:
            return
        if isinstance(answer, NotStored):
            self._fail(task, from_dict(answer.error))
        elif isinstance(answer.result, Receipt):
            self._forget(task)
            self._events.put(Event(task.key, "finished", receipt=answer.result, stored=task.stored))
        else:
            task.rows.append(answer.result)
            task.stored += 1
            self._events.put(Event(task.key, "picture", stored=task.stored))
            self._queue_whole(task)

    def _fail(self, task: _Task, error: FarmError) -> None:
        self._forget(task)
        self._events.put(Event(task.key, "failed", error=error, stored=task.stored))

    def _fail_all(self, error: FarmError) -> None:
        for task in list(self._tasks.values()):
            if task.working:
                self._fail(task, error)

    # The process.

    def _supervise(self) -> None:
        """Keep a process running and take its answers."""
        failed_starts = 0
        while not self._closed:
            link = ProcessPipe(self._begin)
            with self._changed:
                self._link = link
                self._send_again()
                if self._closed:
                    link.kill()
            while (answer := link.receive()) is not None:
                with self._changed:
                    if isinstance(answer, Ready):
                        failed_starts = -1
                        self._ready = True
                        self._changed.notify_all()
                    else:
                        self._answered(answer)
            failed_starts += 1
            with self._changed:
                self._ready, self._link = False, None
                link.kill()
                if self._closed:
                    return
                self._count_deaths()
                if failed_starts >= MAX_FAILED_STARTS:
                    self._fail_all(StoreError("the publisher's process does not start"))
                delay = min(RESTART_SECONDS * 2**failed_starts, MAX_RESTART_SECONDS)
                log.warning("the publisher's process ended; starting another in %.1f s", delay)
                self._changed.wait_for(lambda: self._closed, timeout=delay)

    def _send_again(self) -> None:
        """Queue all that a new process has to know."""
        self._outbox = Outbox()
        for task in self._tasks.values():
            if task.deadline is not None:
                self._outbox.orders.append(LeaseUntil(task.number, task.deadline))
        for parcel in self._parcels.values():
            self._outbox.add(parcel)

    def _count_deaths(self) -> None:
        """Blame what was being done: the process takes work in order, so the oldest."""
        sent = [
            (parcel.sent, parcel) for parcel in self._parcels.values() if parcel.sent is not None
        ]
        oldest = sorted(sent, key=lambda pair: pair[0])[: self._begin.threads]
        for _, parcel in sent:
            parcel.sent = None
        self._sent_bytes = 0
        for _, parcel in oldest:
            parcel.deaths += 1
            task = self._by_number.get(parcel.work.task)
            if parcel.deaths >= MAX_DEATHS and task is not None:
                self._fail(
                    task,
                    StoreError(
                        f"the publisher's process died {parcel.deaths} times "
                        f"while it was to store {parcel.work.subject}"
                    ),
                )

    def _send(self) -> None:
        while True:
            with self._changed:
                while (item := self._next()) is None:
                    if self._closed:
                        return
                    self._changed.wait()
                link = self._link
            with contextlib.suppress(OSError):  # it has ended; the next one gets everything again
                if link is not None:
                    link.send(item)

    def _next(self) -> PendingUpload | LeaseUntil | Drop | None:
        if not self._ready:
            return None
        item = self._outbox.next(room=self._sent_bytes < SENT_BYTES)
        if isinstance(item, PendingUpload):
            item.sent = next(self._numbers)
            self._sent_bytes += item.size
        return item
