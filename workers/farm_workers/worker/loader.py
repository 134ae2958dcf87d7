"""From a lease to something a worker can work on: its chunk, its inputs, what is stored already."""

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from farm.errors import InvalidInput, StoreError
from farm.formats.manifest import ManifestRow
from farm.job import Chunk, Lease, Priority, Receipt
from farm.queue import Queue
from farm.sinks.parts import pictures_to_make, rows_of, stored_receipt
from farm.sinks.protocol import RowId, Sink, TaskPlace
from farm.sinks.registry import Sinks
from farm.spec import CheckpointInfo, Lane
from farm.store import Store, keys
from farm_workers.publisher.publisher import Publisher
from farm_workers.worker.inputs import InputReader
from farm_workers.worker.lease_table import LeaseTable
from farm_workers.worker.leased_task import LeasedTask
from farm_workers.worker.queue_session import Report

log = logging.getLogger(__name__)

THREADS = 4  # that read chunks and input files, for urgent tasks and for the others
STORE_PATIENCE_SECONDS = 120.0

Result = TypeVar("Result")


class Loader:
    """Loads leases with threads of its own.

    Args:
        infos: the checkpoints that the worker holds.
        loaded: called with each assignment that is ready to start.
        report: called for a lease that ends without one.
    """

    def __init__(
        self,
        store: Store,
        sinks: Sinks,
        queue: Queue,
        publisher: Publisher,
        aboard: LeaseTable,
        infos: Mapping[str, CheckpointInfo],
        *,
        loaded: Callable[[LeasedTask], None],
        report: Callable[[Report], None],
    ) -> None:
        self._store = store
        self._sinks = sinks
        self._queue = queue
        self._publisher = publisher
        self._aboard = aboard
        self._infos = infos
        self._loaded = loaded
        self._report = report
        self._stopped = threading.Event()
        self._inputs = InputReader(
            lambda tenant, asset: self._read(keys.asset(tenant, asset)), infos
        )
        # Whoever looks at a screen does not queue behind a dataset's files.
        self._threads = {
            urgent: ThreadPoolExecutor(THREADS, thread_name_prefix="load")
            for urgent in (True, False)
        }

    def load(self, lease: Lease) -> None:
        """Begin to load a lease that has come aboard."""
        self._threads[lease.priority is Priority.URGENT].submit(self._load, lease)

    def close(self) -> None:
        self._stopped.set()
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)

    def _load(self, lease: Lease) -> None:
        try:
            if lease.finalise:
                self._finalise(lease)
                return
            text = lease.inline or self._read(keys.chunk(lease.job, lease.number)).decode()
            chunk = Chunk.model_validate_json(text)
            if Lane.parse(chunk.lane).checkpoint not in self._infos:
                raise InvalidInput(f"this worker does not hold the checkpoint of {chunk.lane}")
            sink = self._sinks.get(chunk.sink)
            found: list[ManifestRow] = []
            wanted = self._wanted(lease, chunk, sink)
            if lease.attempt > 1:
                # What earlier attempts left is not rendered a second time.
                place = TaskPlace.of(chunk, lease.generation)
                receipt = self._patiently(lambda: stored_receipt(self._store, place))
                if receipt is not None:
                    self._end(Report(lease, receipt))
                    return
                rows = set(rows_of(chunk)) if wanted is None else wanted
                found = self._patiently(lambda: sink.stored_pictures(place, chunk, rows))
            threads = self._threads[lease.priority is Priority.URGENT]
            self._loaded(LeasedTask(lease, chunk, self._inputs, threads, wanted, found))
        except Exception as error:
            log.warning("task %s cannot be loaded: %s", lease.key, error)
            self._end(Report(lease, None, "infra", f"its chunk cannot be read: {error}"))

    def _end(self, report: Report) -> None:
        if self._aboard.skip(report.lease):
            self._publisher.drop(report.lease.key)
            self._report(report)

    def _wanted(self, lease: Lease, chunk: Chunk, sink: Sink) -> set[RowId] | None:
        """Of a retried task, what its earlier generations have not made; else None, for all."""
        if lease.generation == 0 or lease.pictures == chunk.pictures:
            return None
        wanted = pictures_to_make(self._store, sink, chunk, lease.generation)
        if len(wanted) != lease.pictures:
            raise StoreError(
                f"{len(wanted)} of its pictures are not stored; the queue knows of {lease.pictures}"
            )
        return wanted

    def _finalise(self, lease: Lease) -> None:
        receipts: list[Receipt] = []
        failed: dict[int, int] = {}  # by task: a newer generation has tried its failures again
        after = 0
        while found := self._queue.finished(lease.job, after):
            receipts += (finished.receipt for finished in found)
            failed |= {finished.number: finished.receipt.failed for finished in found}
            after = found[-1].position
        if not self._aboard.skip(lease):
            return
        self._publisher.finalise(
            lease.key,
            lease.job,
            lease.generation,
            [(receipt.part, receipt.part_sha256) for receipt in receipts],
            {
                "done": sum(receipt.done for receipt in receipts),
                "failed": sum(failed.values()),
            },
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
