"""An empty queue filled again from the store, where job, chunks and manifest parts lie."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from farm.errors import Conflict, FarmError, StoreError, Unavailable
from farm.formats.manifest import read_part
from farm.ingest.job_record import ClosedRecord, JobRecord, RemovedRecord
from farm.job import (
    MAX_PIECE_LINES,
    RETENTION_DAYS,
    Chunk,
    JobOptions,
    JobState,
    Receipt,
    is_job_id,
)
from farm.queue import JobHeader, Queue, Restored
from farm.queue.constants import MAX_ROWS
from farm.sinks.parts import part_receipt
from farm.spec import Lane
from farm.store import Store, keys
from farm.stored_record import NewerRecord

READERS = 16  # objects read at a time


@dataclass
class Found:
    """What lies in the store of one job."""

    header: bool = False
    closed: bool = False
    cancelled: bool = False
    removed: bool = False
    chunks: list[int] = field(default_factory=list)
    parts: dict[int, list[int]] = field(default_factory=dict)  # task -> its generations
    ended: set[int] = field(default_factory=set)  # generations with a _SUCCESS

    @property
    def generation(self) -> int:
        """The newest that has ended; what a later one has stored is taken over by its retry."""
        return max(self.ended, default=0)

    @property
    def retried(self) -> bool:
        """A retry was on its way."""
        newest = max((max(generations) for generations in self.parts.values()), default=0)
        return bool(self.ended) and newest > self.generation


def survey(store: Store) -> dict[str, Found]:
    """Every job in the store, the oldest first."""
    found: dict[str, Found] = {}
    for entry in store.list(""):
        _, _, rest = entry.key.partition("/")
        job, _, name = rest.partition("/")
        if not is_job_id(job):
            continue
        one = found.setdefault(job, Found())
        kind, _, last = name.rpartition("/")
        stem = last.partition(".")[0]
        if name == "job.json":
            one.header = True
        elif name == "closed.json":
            one.closed = True
        elif name == "_CANCELLED":
            one.cancelled = True
        elif name == "_REMOVED":
            one.removed = True
        elif kind == "chunks":
            one.chunks.append(int(stem))
        elif kind.startswith("manifest/"):
            number = int(stem.removeprefix("part-"))
            one.parts.setdefault(number, []).append(int(kind.removeprefix("manifest/")))
        elif name == "_SUCCESS" or name.startswith("_SUCCESS."):
            one.ended.add(int(name.partition(".")[2] or 0))
    return dict(sorted(found.items()))


def rebuild(queue: Queue, store: Store) -> Counter[str]:
    """Bring every job of the store back into a queue that does not know it.

    Not in the store, and so not brought back, are pauses, tenants' weights, and retries of which
    no task has ended. Tasks without a manifest part run again; they take over pictures that are
    stored. A second call continues where the first was interrupted.

    Returns:
        How many jobs came back by their state, ``tasks`` and ``pictures`` (done), and as
        ``unreadable`` those whose record or chunks are damaged.

    Raises:
        Unavailable: queue or store do not answer.
    """
    counts: Counter[str] = Counter()
    with ThreadPoolExecutor(READERS) as pool:
        for job, found in survey(store).items():
            acknowledged = found.header and (found.chunks or found.closed)
            if not acknowledged and not found.removed:
                continue
            try:
                if found.removed:
                    _go_on_removing(queue, store, job)
                    continue
                record = JobRecord.model_validate_json(store.get(keys.header(job)))
                if found.ended and _forgotten(record):
                    continue
                _Job(queue, store, record, found).restore(pool)
            except NewerRecord:  # not damaged: the newer farm can read it
                raise
            except StoreError:  # of this job's objects, or the store has gone away
                store.size(keys.header(job))
                counts["unreadable"] += 1
                continue
            except Unavailable:  # the queue's server
                raise
            except (FarmError, ValueError):
                counts["unreadable"] += 1
                continue
            status = queue.status(job, record.tenant)
            counts[status.state.value] += 1
            counts["tasks"] += status.tasks.total
            counts["pictures"] += status.images.done
    return counts


def _forgotten(record: JobRecord) -> bool:
    """Whether the queue would not know a job any more that ended soon after it came in."""
    if record.options.get("keep") is not None:
        return False  # it knows when the pictures are to go
    kept = timedelta(days=record.retention_days or RETENTION_DAYS)
    return record.created_at < datetime.now(UTC) - kept


def _go_on_removing(queue: Queue, store: Store, job: str) -> None:
    record = RemovedRecord.model_validate_json(store.get(keys.removed(job)))
    queue.remove(job, record.tenant, stored=True)


class _Job:
    def __init__(self, queue: Queue, store: Store, record: JobRecord, found: Found) -> None:
        self._queue = queue
        self._store = store
        self._record = record
        self._found = found

    def restore(self, pool: ThreadPoolExecutor) -> None:
        record, found = self._record, self._found
        job = record.job
        options = dict(record.options)
        deadline = options.pop("deadline", None)
        header = JobHeader(
            job, record.tenant, JobOptions.model_validate(options), record.fingerprint
        )
        if self._known():
            return
        opened = self._queue.restore(header, record.created_at, found.generation)
        if opened.job != job:  # its idempotency key belongs to another job by now
            free = header.options.model_copy(update={"idempotency_key": None})
            header = header._replace(options=free)
            self._queue.restore(header, record.created_at, found.generation)
        rows: list[Restored] = []
        for tasks in pool.map(self._tasks, sorted(found.chunks)):
            rows += tasks
            if len(rows) > MAX_ROWS // 2:
                self._put(rows)
                rows = []
        self._put(rows)
        closed = self._closed()
        self._queue.restored(
            job,
            deadline=datetime.fromisoformat(deadline) if deadline else None,
            rejected=closed.rejected if closed else 0,
            pieces=sorted({number // MAX_PIECE_LINES for number in found.chunks}),
            closed=closed is not None and not found.cancelled,
            ended=record.created_at if found.ended else None,
        )
        if found.cancelled:
            self._queue.cancel(job, record.tenant)
        elif found.retried:
            try:
                self._queue.retry(job, record.tenant)
            except Conflict:  # its deadline has passed: it stays as it ended
                return

    def _known(self) -> bool:
        """Whether the queue has the job; one that is open may be half put back."""
        try:
            status = self._queue.status(self._record.job, self._record.tenant)
        except FarmError:
            return False
        return status.state is not JobState.OPEN

    def _closed(self) -> ClosedRecord | None:
        if self._record.whole:
            return ClosedRecord(pieces=1, rejected=self._record.rejected)
        if not self._found.closed:
            return None
        return ClosedRecord.model_validate_json(self._store.get(keys.closed(self._record.job)))

    def _put(self, rows: list[Restored]) -> None:
        for start in range(0, len(rows), MAX_ROWS):
            self._queue.restore_tasks(
                self._record.job,
                self._record.created_at,
                self._found.generation,
                rows[start : start + MAX_ROWS],
            )

    def _tasks(self, number: int) -> list[Restored]:
        """A task in all its generations that count."""
        job, found = self._record.job, self._found
        chunk = Chunk.model_validate_json(self._store.get(keys.chunk(job, number)))
        receipts = dict(self._receipts(number))
        made = [
            Restored(
                number,
                generation,
                Lane.parse(chunk.lane),
                receipt.done + receipt.failed if generation else chunk.pictures,
                chunk.cost,
                receipt=receipt,
            )
            for generation, receipt in sorted(receipts.items())
        ]
        if 0 not in receipts:
            lost = bool(found.ended)
            first = Restored(
                number, 0, Lane.parse(chunk.lane), chunk.pictures, chunk.cost, lost=lost
            )
            made.insert(0, first)
        newest = made[-1]
        failed = newest.lost or (newest.receipt is not None and newest.receipt.failed > 0)
        return [*made[:-1], newest._replace(retry=failed)]

    def _receipts(self, number: int) -> Iterator[tuple[int, Receipt]]:
        job = self._record.job
        for generation in self._found.parts.get(number, ()):
            if generation <= self._found.generation:
                key = keys.part(job, generation, number)
                data = self._store.get(key)
                yield generation, part_receipt(key, data, read_part(data))
