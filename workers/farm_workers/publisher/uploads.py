"""What a publisher has to store and has no answer for, and the order in which it is sent."""

import collections
import time
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from farm.formats.picture_file import token_bytes
from farm.formats.picture_record import PictureRecord
from farm.sinks.protocol import TaskPlace
from farm_workers.leased_task import LeasedTask
from farm_workers.publisher.messages import (
    Drop,
    LeaseUntil,
    Notice,
    StorePicture,
    StoreTask,
    Work,
)

RECORD_BYTES = 4096  # about what a picture takes besides its pixels
SENT_BYTES = 64 * 2**20  # with the process and not answered; nothing urgent waits behind more
BATCH = 64  # pieces of work without pixels that are sent at once
MAX_DEATHS = 3  # of the process while it did one piece of work, then the work is given up


class PendingUpload:
    """A piece of work until it is answered."""

    def __init__(self, work: Work, *, urgent: bool, pixels: memoryview | None = None) -> None:
        self.work = work
        self.urgent = urgent
        self.pixels = pixels
        records = work.pictures if isinstance(work, StoreTask) else 1
        self.size = RECORD_BYTES * records + (pixels.nbytes if pixels is not None else 0)
        self.sent: int | None = None  # its place in the order of sending
        self.again = False  # sent to a process that has died since
        self.deaths = 0
        self.since = time.monotonic()


def picture_upload(
    number: int,
    task: LeasedTask,
    record: PictureRecord,
    pixels: NDArray[np.uint8] | None,
    tokens: NDArray[np.integer],
) -> PendingUpload:
    """One picture of a task that has its place; the arrays are not copied."""
    assert task.place is not None
    view = None
    if pixels is not None:
        pixels = np.ascontiguousarray(pixels, dtype=np.uint8)
        view = pixels.data.cast("B")
    work = StorePicture(
        number=number,
        task=task.number,
        place=task.place,
        record=record,
        shape=None if pixels is None else pixels.shape,
        tokens=token_bytes(tokens),
        token_shape=tokens.shape,
    )
    return PendingUpload(work, urgent=task.urgent, pixels=view)


class UploadQueue:
    """Sends leases and drops first, then urgent work, then the rest. Not thread-safe."""

    def __init__(self) -> None:
        self.pending_bytes = 0
        self._sent_bytes = 0
        self._sent = 0  # how many were sent
        self._pending: dict[int, PendingUpload] = {}  # by number, in the order they were added
        self._clear()

    def _clear(self) -> None:
        self._notices: collections.deque[Notice] = collections.deque()
        self._urgent: collections.deque[PendingUpload] = collections.deque()
        self._others: collections.deque[PendingUpload] = collections.deque()

    @property
    def tasks(self) -> set[int]:
        """Numbers of the tasks that wait for an answer."""
        return {upload.work.task for upload in self._pending.values()}

    @property
    def waited_seconds(self) -> float:
        """Of what has waited longest for its answer."""
        oldest = next(iter(self._pending.values()), None)
        return 0.0 if oldest is None else time.monotonic() - oldest.since

    def add(self, upload: PendingUpload) -> None:
        self._pending[upload.work.number] = upload
        self.pending_bytes += upload.size
        self._queue(upload)

    def notify(self, notice: Notice) -> None:
        self._notices.append(notice)

    def next(self) -> list[PendingUpload | Notice]:
        """What is to be sent now, at once; empty where there is nothing or the process has enough.

        What has pixels goes alone, for the sake of what is urgent; so does what a process may have
        died of, which has to be told from its neighbours.
        """
        if self._notices:
            found: list[PendingUpload | Notice] = list(self._notices)
            self._notices.clear()
            return found
        uploads = self._urgent or self._others
        batch: list[PendingUpload | Notice] = []
        while uploads and self._sent_bytes < SENT_BYTES and len(batch) < BATCH:
            alone = uploads[0].pixels is not None or uploads[0].again
            if alone and batch:
                break
            upload = uploads.popleft()
            upload.sent = self._sent
            self._sent += 1
            self._sent_bytes += upload.size
            batch.append(upload)
            if alone:
                break
        return batch

    def answered(self, number: int) -> PendingUpload | None:
        """Take out a piece of work; None if it was forgotten meanwhile."""
        upload = self._pending.pop(number, None)
        if upload is not None:
            self.pending_bytes -= upload.size
            if upload.sent is not None:
                self._sent_bytes -= upload.size
        return upload

    def forget(self, task: int, place: TaskPlace | None) -> None:
        """Send no more of a task, and tell the process to drop it."""
        for number in [key for key, one in self._pending.items() if one.work.task == task]:
            self.answered(number)
        self._notices = collections.deque(one for one in self._notices if one.task != task)
        self._urgent = collections.deque(one for one in self._urgent if one.work.task != task)
        self._others = collections.deque(one for one in self._others if one.work.task != task)
        self._notices.append(Drop(task, place))

    def send_again(self, leases: Iterable[LeaseUntil]) -> None:
        """Queue all that a new process has to know."""
        drops = [one for one in self._notices if isinstance(one, Drop)]
        self._clear()
        self._notices.extend([*drops, *leases])
        for upload in self._pending.values():
            self._queue(upload)

    def count_death(self, threads: int) -> list[PendingUpload]:
        """The process has died; returns what it has died of too often.

        It takes work in order and does ``threads`` pieces at a time, so the oldest are blamed.
        """
        sent = [
            (upload.sent, upload) for upload in self._pending.values() if upload.sent is not None
        ]
        oldest = [upload for _, upload in sorted(sent, key=lambda pair: pair[0])[:threads]]
        for _, upload in sent:
            upload.sent = None
            upload.again = True
        self._sent_bytes = 0
        for upload in oldest:
            upload.deaths += 1
        return [upload for upload in oldest if upload.deaths >= MAX_DEATHS]

    def _queue(self, upload: PendingUpload) -> None:
        (self._urgent if upload.urgent else self._others).append(upload)
