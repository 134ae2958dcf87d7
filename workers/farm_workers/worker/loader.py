"""Loads a leased task: its chunk, its inputs, and what is stored of it already."""

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from farm.errors import InvalidInput, StoreError
from farm.formats.manifest import ManifestRow
from farm.job import Chunk, Lease, Receipt
from farm.queue import Queue
from farm.sinks.parts import pictures_to_make, rows_of, stored_receipt
from farm.sinks.protocol import RowId, Sink, TaskPlace
from farm.sinks.registry import Sinks
from farm.spec import CheckpointInfo, Lane
from farm.store import Store, keys
from farm.stored_record import NewerRecord
from farm_workers.leased_task import LeasedTask, Outcome
from farm_workers.publisher.publisher import Publisher
from farm_workers.render_engine import RenderEngine
from farm_workers.worker.inputs import InputReader
from farm_workers.worker.lease_table import LeaseTable
from farm_workers.worker.metrics import WorkerMetrics
from farm_workers.worker.task_rows import TaskRows

log = logging.getLogger(__name__)

THREADS = 4  # that read chunks and input files, for urgent tasks and for the others
STORE_PATIENCE_SECONDS = 120.0

Result = TypeVar("Result")


class Loader:
    """Loads leases with threads of its own.

    Args:
        infos, engines: of the checkpoints that the worker holds, by name.
        enqueue: called with the rows of each task that is ready to start.
        outdated: called when a newer farm has written what this worker should read.
    """

    def __init__(
        self,
        store: Store,
        sinks: Sinks,
        queue: Queue,
        publisher: Publisher,
        leases: LeaseTable,
        infos: Mapping[str, CheckpointInfo],
        engines: Mapping[str, RenderEngine],
        enqueue: Callable[[TaskRows], None],
        metrics: WorkerMetrics,
        outdated: Callable[[], None],
    ) -> None:
        self._store = store
        self._outdated = outdated
        self._sinks = sinks
        self._queue = queue
        self._publisher = publisher
        self._leases = leases
        self._infos = infos
        self._enqueue = enqueue
        self._stopped = threading.Event()
        self._inputs = InputReader(
            lambda tenant, asset: self._read(keys.asset(tenant, asset)),
            infos,
            engines,
            told=metrics.looked_up,
        )
        # Urgent tasks do not queue behind a dataset's files.
        self._threads = {
            urgent: ThreadPoolExecutor(THREADS, thread_name_prefix="load")
            for urgent in (True, False)
        }

    def load(self, task: LeasedTask) -> None:
        """Begin to load a task that was granted."""
        self._threads[task.urgent].submit(self._load, task)

    def close(self) -> None:
        self._stopped.set()
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)

    def _load(self, task: LeasedTask) -> None:
        try:
            if task.lease.finalise:
                self._finalise(task)
            else:
                self._load_rows(task)
        except NewerRecord as error:
            log.critical("this worker is too old and ends: %s", error)
            self._outdated()  # first: else it would get the task again
            self._end(task, Outcome(None, "release", str(error)))
        except Exception as error:
            facts = {"job": task.lease.job, "task": task.key}
            log.warning("task %s cannot be loaded: %s", task.key, error, extra=facts)
            self._end(task, Outcome(None, "infra", f"its chunk cannot be read: {error}"))

    def _load_rows(self, task: LeasedTask) -> None:
        lease = task.lease
        text = lease.inline or self._read(keys.chunk(lease.job, lease.number)).decode()
        chunk = Chunk.model_validate_json(text)
        info = self._infos.get(Lane.parse(chunk.lane).checkpoint)
        if info is None:
            raise InvalidInput(f"this worker does not hold the checkpoint of {chunk.lane}")
        sink = self._sinks.get(chunk.sink)
        found: list[ManifestRow] = []
        wanted = self._wanted(lease, chunk, sink)
        if lease.attempt > 1:
            # What earlier attempts left is not rendered a second time.
            place = TaskPlace.of(chunk, lease.generation)
            receipt = self._patiently(lambda: stored_receipt(self._store, place))
            if receipt is not None:
                self._end(task, Outcome(receipt))
                return
            rows = set(rows_of(chunk)) if wanted is None else wanted
            found = self._patiently(lambda: sink.stored_pictures(place, chunk, rows))
        threads = self._threads[task.urgent]
        task_rows = TaskRows(
            task,
            chunk,
            info,
            self._inputs,
            threads,
            tokens_alone=sink.tokens_alone,
            wanted=wanted,
            found=found,
        )
        self._enqueue(task_rows)

    def _end(self, task: LeasedTask, outcome: Outcome) -> None:
        self._publisher.drop(task)  # before the queue hears of it and a successor can come
        self._leases.end(task, outcome)

    def _wanted(self, lease: Lease, chunk: Chunk, sink: Sink) -> set[RowId] | None:
        """Of a retried task, what its earlier generations have not made; else None, for all."""
        if lease.generation == 0 or lease.pictures == chunk.pictures:
            return None
        wanted = self._patiently(
            lambda: pictures_to_make(self._store, sink, chunk, lease.generation)
        )
        if len(wanted) != lease.pictures:
            raise StoreError(
                f"{len(wanted)} of its pictures are not stored; the queue knows of {lease.pictures}"
            )
        return wanted

    def _finalise(self, task: LeasedTask) -> None:
        receipts: list[Receipt] = []
        after = 0
        while found := self._queue.finished(task.lease.job, after):
            receipts += (finished.receipt for finished in found)
            after = found[-1].position
        images = self._queue.totals(task.lease.job)
        self._publisher.finalise(
            task,
            [(receipt.part, receipt.part_sha256) for receipt in receipts],
            {"done": images.done, "failed": images.failed, "expired": images.expired},
        )

    def _read(self, key: str) -> bytes:
        return self._patiently(lambda: self._store.get(key))

    def _patiently(self, read: Callable[[], Result]) -> Result:
        """Read again and again from a store that does not answer for a while."""
        deadline = time.monotonic() + STORE_PATIENCE_SECONDS
        delay = 0.1
        while True:
            try:
                return read()
            except StoreError:
                if time.monotonic() > deadline or self._stopped.is_set():
                    raise
            time.sleep(delay * random.random())
            delay = min(delay * 2, 10.0)
