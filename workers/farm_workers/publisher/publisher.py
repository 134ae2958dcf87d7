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
from farm.formats.picture_record import PictureRecord
from farm.formats.token_pictures import TokenPictures
from farm.job import Receipt
from farm.sinks.registry import Sinks
from farm.store import keys, open_store
from farm_workers.leased_task import LeasedTask
from farm_workers.publisher.messages import (
    Begin,
    LeaseUntil,
    NotStored,
    Ready,
    Stored,
    StoreSuccess,
    StoreTask,
    TellEarly,
)
from farm_workers.publisher.pipe import ProcessPipe
from farm_workers.publisher.success import success_document
from farm_workers.publisher.uploads import PendingUpload, UploadQueue, picture_upload

log = logging.getLogger(__name__)

S3_THREADS = 8
LOCAL_THREADS = 4
PATIENCE_SECONDS = 3600.0  # a store that fails is asked again for that long
MAX_FAILED_STARTS = 5  # in a row, then what waits is given up
FIRST_TOLD_SECONDS = 0.25  # after a picture was stored, readers see it at the latest
TOLD_SECONDS = 1.0  # between two times that a task tells of its pictures
RESTART_SECONDS = 0.1  # twice that after each failed start
MAX_RESTART_SECONDS = 5.0


class Event(NamedTuple):
    """``picture``: one more is stored. ``finished`` and ``failed`` are a task's last events."""

    task: LeasedTask
    kind: Literal["picture", "finished", "failed"]
    receipt: Receipt | None = None  # of a finished task
    error: FarmError | None = None  # why the task failed
    encode_seconds: float = 0.0  # of a picture
    upload_seconds: float = 0.0
    file: str = ""  # its key; a picture in a shard has that of the shard


class Publisher:
    """Thread-safe. What was handed over survives the process's death: a new one gets it again.

    It keeps the results in the ``LeasedTask`` itself. Once a task has ended or was dropped, calls
    about it do nothing.

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
        store = open_store(store_url)  # a bad one is refused here, not in the process
        url = store.url
        default = S3_THREADS if url.startswith("s3:") else LOCAL_THREADS
        self._scratch = scratch or Path(tempfile.mkdtemp(prefix="farm-publisher-"))
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._sinks = Sinks(store, self._scratch)  # only asked of what kind they are
        self._begin = Begin(url, self._scratch, threads or default, patience_seconds)
        self._events: queues.SimpleQueue[Event] = queues.SimpleQueue()
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._tasks: dict[int, LeasedTask] = {}  # that were named and are not closed
        self._uploads = UploadQueue()
        self._pipe: ProcessPipe | None = None
        self._ready = False  # the process takes work
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
        return self._uploads.pending_bytes

    @property
    def waited_seconds(self) -> float:
        """Of what has waited longest to be stored."""
        with self._changed:
            return self._uploads.waited_seconds

    @property
    def pid(self) -> int | None:
        """Of the process; None while there is none."""
        pipe = self._pipe
        return pipe.pid if pipe else None

    def lease_until(self, task: LeasedTask, deadline: float) -> None:
        """Nothing of the task is written after ``deadline``, a time of ``time.monotonic``.

        A task that was never given a deadline is written at any time.
        """
        with self._changed:
            if self._open(task):
                task.deadline = deadline
                self._uploads.notify(LeaseUntil(task.number, deadline))
                self._changed.notify_all()

    def picture(
        self,
        task: LeasedTask,
        record: PictureRecord,
        pixels: NDArray[np.uint8] | None,
        tokens: NDArray[np.integer],
    ) -> None:
        """Queue one picture of a task that has its place, in a sink that stores its file.

        After the last one the task is stored as a whole.

        Args:
            pixels: uint8 (height, width, 3), None where only tokens are stored; like ``tokens``,
                (token rows, columns), they must not be changed afterwards.
        """
        with self._changed:
            if self._takes(task):
                task.handed_over += 1
                self._upload(picture_upload(next(self._numbers), task, record, pixels, tokens))

    def tokens(self, task: LeasedTask, made: TokenPictures) -> None:
        """Pictures of a task in a sink that keeps nothing but their tokens."""
        with self._changed:
            if self._takes(task):
                task.handed_over += len(made)
                task.add_tokens(made)
                if task.whole:
                    self._store_task(task)

    def failed_picture(self, task: LeasedTask, record: PictureRecord, error: FarmError) -> None:
        """A picture that could not be made; it goes into the manifest only."""
        self.known_picture(task, record.failed_row(error))

    def known_picture(self, task: LeasedTask, row: ManifestRow) -> None:
        """A picture of which nothing has to be stored but its row; one that an earlier attempt at
        the task has stored, too."""
        with self._changed:
            if self._takes(task):
                task.handed_over += 1
                self._add_row(task, row)

    def finalise(
        self,
        task: LeasedTask,
        parts: Iterable[tuple[str, str]],
        counts: Mapping[str, int],
    ) -> None:
        """Write ``_SUCCESS`` of the task's job: parts with their sha256, and what was counted."""
        job, generation = task.lease.job, task.lease.generation
        data = success_document(job, generation, parts, counts)
        with self._changed:
            if self._open(task):
                key = keys.success(job, generation)
                work = StoreSuccess(next(self._numbers), task.number, job, key, data)
                self._upload(PendingUpload(work, urgent=True))

    def cut_short(self, task: LeasedTask) -> bool:
        """End a task whose job was cancelled with the pictures that were handed over by now; one
        that has none is dropped, and only then True is returned."""
        with self._changed:
            task.cut_short = True
            if not self._open(task):  # one that has ended is reported as it is
                return False
            stored = task.whole  # it is on its way already
            task.pictures = task.handed_over
            if not task.pictures:
                self._close(task)
            elif not stored and task.whole:
                self._store_task(task)
            return not task.pictures

    def drop(self, task: LeasedTask) -> None:
        """Forget a task: what has not begun to be uploaded never is, and no event follows."""
        with self._changed:
            self._close(task)

    def poll(self, timeout: float) -> list[Event]:
        """What has happened, in order; waits up to ``timeout`` seconds for the first event.

        Raises:
            RuntimeError: one of its threads has died, and nothing would ever happen again.
        """
        if not self._closed and not all(thread.is_alive() for thread in self._threads):
            raise RuntimeError("a thread of the publisher has died")
        events: list[Event] = []
        with contextlib.suppress(queues.Empty):
            if timeout > 0:
                events.append(self._events.get(timeout=timeout))
            while True:
                events.append(self._events.get_nowait())
        return events

    def close(self) -> None:
        """End the process at once; what is not stored yet is not."""
        with self._changed:
            self._closed = True
            if self._pipe is not None:
                self._pipe.kill()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        shutil.rmtree(self._scratch, ignore_errors=True)

    # Everything below is called with the lock held, but for the two threads' own loops.

    def _open(self, task: LeasedTask) -> bool:
        if not task.closed:
            self._tasks[task.number] = task
        return not task.closed

    def _takes(self, task: LeasedTask) -> bool:
        """Whether one more of its pictures is wanted."""
        return self._open(task) and not task.cut_short

    def _close(self, task: LeasedTask) -> None:
        task.closed = True
        if self._tasks.pop(task.number, None) is not None:
            self._uploads.forget(task.number, task.place)
            self._changed.notify_all()

    def _upload(self, upload: PendingUpload) -> None:
        self._uploads.add(upload)
        self._changed.notify_all()

    def _add_row(self, task: LeasedTask, row: ManifestRow) -> None:
        assert task.place is not None
        task.add_row(row)
        if task.whole:
            self._store_task(task)
        elif task.tell_at is None and not self._sinks.get(task.place.sink).sharded:
            task.tell_at = time.monotonic() + (TOLD_SECONDS if task.told else FIRST_TOLD_SECONDS)
            self._changed.notify_all()

    def _store_task(self, task: LeasedTask) -> None:
        assert task.place is not None
        number, rows = next(self._numbers), tuple(task.rows)
        work = StoreTask(number, task.number, task.place, rows, task.tokens)
        self._upload(PendingUpload(work, urgent=task.urgent))
        task.tell_at = None

    def _tell_early(self) -> float | None:
        """Let readers see what is due; returns the seconds until more is, None if nothing waits."""
        now = time.monotonic()
        seconds: list[float] = []
        for task in self._tasks.values():
            if task.tell_at is None:
                continue
            if task.tell_at > now:
                seconds.append(task.tell_at - now)
                continue
            assert task.place is not None
            rows = tuple(task.rows[task.told :])
            self._uploads.notify(TellEarly(task.number, task.place, task.lease.attempt, rows))
            task.told, task.tell_at = len(task.rows), None
        return min(seconds, default=None)

    def _answered(self, answer: Stored | NotStored) -> None:
        upload = self._uploads.answered(answer.number)
        task = self._tasks.get(upload.work.task) if upload else None
        if task is None:
            return
        if isinstance(answer, NotStored):
            self._fail(task, from_dict(answer.error))
        elif isinstance(answer.result, Receipt):
            self._close(task)
            self._events.put(Event(task, "finished", receipt=answer.result))
        else:
            self._add_row(task, answer.result)
            seconds = answer.encode_seconds, answer.upload_seconds
            self._events.put(Event(task, "picture", None, None, *seconds, answer.result.file or ""))

    def _fail(self, task: LeasedTask, error: FarmError) -> None:
        self._close(task)
        self._events.put(Event(task, "failed", error=error))

    # The process.

    def _supervise(self) -> None:
        """Keep a process running and take its answers."""
        failed_starts = 0
        while not self._closed:
            pipe = ProcessPipe(self._begin)
            with self._changed:
                self._pipe = pipe
                self._uploads.send_again(
                    LeaseUntil(task.number, task.deadline)
                    for task in self._tasks.values()
                    if task.deadline is not None
                )
                if self._closed:
                    pipe.kill()
            while (answers := pipe.receive()) is not None:
                with self._changed:
                    for answer in answers:
                        if isinstance(answer, Ready):
                            failed_starts = -1
                            self._ready = True
                        else:
                            self._answered(answer)
                    self._changed.notify_all()
            failed_starts += 1
            with self._changed:
                self._ready, self._pipe = False, None
                pipe.kill()
                if self._closed:
                    return
                self._give_up(failed_starts)
                delay = min(RESTART_SECONDS * 2 ** min(failed_starts, 10), MAX_RESTART_SECONDS)
                log.warning("the publisher's process ended; starting another in %.1f s", delay)
                self._changed.wait_for(lambda: self._closed, timeout=delay)

    def _give_up(self, failed_starts: int) -> None:
        """The process has died: fail what it dies of, and everything if it does not start."""
        for upload in self._uploads.count_death(self._begin.threads):
            if task := self._tasks.get(upload.work.task):
                died = f"the publisher's process died {upload.deaths} times while it was to store"
                self._fail(task, StoreError(f"{died} {upload.work.subject}"))
        if failed_starts >= MAX_FAILED_STARTS:
            error = StoreError("the publisher's process does not start")
            for number in self._uploads.tasks & self._tasks.keys():
                self._fail(self._tasks[number], error)

    def _send(self) -> None:
        while True:
            with self._changed:
                wait = self._tell_early()
                while not self._ready or not (items := self._uploads.next()):
                    if self._closed:
                        return
                    self._changed.wait(wait)
                    wait = self._tell_early()
                pipe = self._pipe
            with contextlib.suppress(OSError):  # it has ended; the next one gets everything again
                if pipe is not None:
                    pipe.send(items)
