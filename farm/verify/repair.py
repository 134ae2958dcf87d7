"""``farm verify``: reads what the store holds of a job, and repairs what can be."""

import hashlib
import itertools
import secrets
import time
from collections.abc import Generator, Iterator, Set
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from farm.errors import Conflict, NotFound
from farm.formats.manifest import ManifestRow, merge
from farm.job import SETTLED_HOURS, TERMINAL_JOBS, Chunk, JobState
from farm.queue import Finished, JobStatus, Queue
from farm.sinks.early import early_parts, early_rows
from farm.sinks.parts import part_forms, rows_of, task_rows
from farm.sinks.protocol import TaskPlace
from farm.sinks.registry import Sinks
from farm.spec import canonical_json
from farm.store import Store, keys
from farm.verify.compare import Comparison, Counts, Part
from farm.verify.difference import Difference, Kind
from farm.verify.index import JobIndex, job_index

SIGN_SECONDS = 2.0  # between two lines
BLOCK = 1000  # objects between two signs of life
RECORDED = 10_000  # differences in one object about a repair
SETTLED = timedelta(hours=SETTLED_HOURS)
DAMAGED = {Kind.MISSING, Kind.WRONG_SIZE, Kind.WRONG_SHA256}


class RepairRecord:
    """What was repaired of a job; kept in the store, so many differences to an object."""

    def __init__(self, store: Store, job: str) -> None:
        self._store = store
        self._start = keys.repairs(job)
        self._held: list[Difference] = []
        self.count = 0

    def add(self, one: Difference) -> None:
        self._held.append(one)
        self.count += 1
        if len(self._held) == RECORDED:
            self.write()

    def write(self) -> None:
        """What is not written yet."""
        if self._held:
            told = canonical_json([one._asdict() for one in self._held])
            self._store.put(f"{self._start}{secrets.token_hex(8)}.json", told.encode())
            self._held = []


class Repaired(NamedTuple):
    """The result of a repair."""

    differences: int  # the others cannot be repaired here
    generation: int  # of the job now; a higher one than before makes pictures again


class Verifier:
    """One job that has ended."""

    def __init__(self, queue: Queue, store: Store, sinks: Sinks, job: str, tenant: str) -> None:
        self._queue = queue
        self._store = store
        self._tenant = tenant
        self.status: JobStatus = queue.status(job, tenant)
        self._check_ended(self.status)
        self._sink = sinks.get(self.status.sink)
        self._comparison: Comparison | None = None

    def compare(self, index: JobIndex) -> Iterator[Difference | None]:
        """Every difference; None now and then, as a sign of life.

        Args:
            index: an empty one.
        """
        job = self.status.id
        comparison = self._comparison = Comparison(job, self._sink, index, self._sha256)
        for _ in self._fill(index):
            yield None
        for task in index.tasks():
            parts = [self._part(one) for one in task.finished]
            yield from comparison.task(task.number, parts, task.lost)
            yield None
        images = self.status.images
        if self.status.state is JobState.CANCELLED:  # its killed workers wrote no parts
            for early in early_parts(self._store, job):
                comparison.early(early_rows(self._store, early))
        # No list names the tasks whose deadline passed, nor those of a retry that was cancelled,
        # whose pictures no longer count as failed: what the parts say is taken as counted.
        cancelled = self.status.state is JobState.CANCELLED
        unlisted = cancelled or self.status.tasks.expired
        failed = comparison.counts.failed if unlisted else images.failed
        complete = self.status.state is JobState.DONE
        yield from comparison.end(
            Counts(images.done, failed), generation=self.status.generation, complete=complete
        )

    def _fill(self, index: JobIndex) -> Iterator[None]:
        """With what store and queue have, block by block."""
        job = self.status.id
        objects = self._store.list(keys.prefix(job))
        while block := list(itertools.islice(objects, BLOCK)):
            index.add_objects(block)
            yield
        after = 0
        while finished := self._queue.finished(job, after):
            index.add_finished(finished)
            after = finished[-1].position
            yield
        after = 0
        while failures := self._queue.failures(job, after):
            index.add_lost(failures)
            after = failures[-1].position
            yield

    @property
    def pictures(self) -> int:
        """Checked so far."""
        return self._comparison.counts.done if self._comparison else 0

    def repair(self, index: JobIndex) -> Iterator[Repaired | None]:
        """Remove orphans, of a cancelled job once its workers are done with it; write lost parts
        again where what is stored gives the same bytes; and have the pictures of lost and damaged
        objects made again as a new generation. Gives None after each step, as a sign of life, and
        then the result. The repair of what an interrupted one has left does the rest.

        Args:
            index: that of the comparison, with the differences to repair.

        Raises:
            Conflict: the pictures of some tasks cannot be made again; the rest was repaired.
        """
        job = self.status.id
        now = self._queue.status(job, self._tenant)
        self._check_ended(now)
        if now.generation != self.status.generation:
            raise Conflict(f"job {job} was retried meanwhile", hint="verify it again")
        mended = RepairRecord(self._store, job)
        if _settled(now):
            yield from self._remove_orphans(index, mended)
        for one in index.differences():
            if one.kind in (Kind.PART_MISSING, Kind.PART_CHANGED):
                if self._write_part(one, index):
                    mended.add(one)
                yield None
        before = mended.count
        refused = yield from self._invalidate(index, mended)
        remade = mended.count > before
        mended.write()
        generation = self._queue.retry(job, self._tenant) if remade else now.generation
        if refused is not None:
            raise refused
        yield Repaired(mended.count, generation)

    def _check_ended(self, status: JobStatus) -> None:
        if status.state not in TERMINAL_JOBS:
            raise Conflict(
                f"job {status.id} is still {status.state}; it can be verified when it has ended",
                hint=f"farm wait {status.id}",
            )

    def _sha256(self, key: str) -> str:
        digest = hashlib.sha256()
        for piece in self._store.stream(key):
            digest.update(piece)
        return digest.hexdigest()

    def _part(self, task: Finished) -> Part:
        try:
            data = self._store.get(task.receipt.part)
        except NotFound:
            data = None
        return Part(task.generation, task.receipt, data)

    def _invalidate(
        self, index: JobIndex, mended: RepairRecord
    ) -> Generator[None, None, Conflict | None]:
        """Count damaged pictures as failed and delete their objects, task by task, so that a retry
        makes them again. Returns why some of them cannot be."""
        data = keys.all_data(self.status.id)
        refused = None
        damaged = (
            one
            for one in index.differences()
            if one.kind in DAMAGED and one.subject.startswith(data)
        )
        for number, of_task in itertools.groupby(damaged, key=lambda one: one.task):
            assert number is not None
            found = list(of_task)
            try:
                self._count_failed(index.finished(number), {one.subject for one in found})
            except Conflict as error:  # the others are made again all the same
                refused = error
                continue
            self._store.delete_many([one.subject for one in found])
            for one in found:
                mended.add(one)
            yield
        return refused

    def _remove_orphans(self, index: JobIndex, mended: RepairRecord) -> Iterator[None]:
        orphans = (one for one in index.differences() if one.kind is Kind.ORPHAN)
        while block := list(itertools.islice(orphans, BLOCK)):
            self._store.delete_many([one.subject for one in block])
            for one in block:
                mended.add(one)
            yield

    def _count_failed(self, task: list[Finished], damaged: Set[str]) -> None:
        """Tell the queue how many of the task's pictures are left, on its newest receipt."""
        job, newest = self.status.id, task[-1]
        generations = range(self.status.generation + 1)
        rows = merge(task_rows(self._store, job, newest.number, generations))
        good = sum(
            len(stored.rows)
            for stored in self._sink.objects(rows.values())
            if stored.key not in damaged
        )
        earlier = sum(one.receipt.done for one in task[:-1])
        self._queue.invalidate(job, self._tenant, newest, good - earlier)

    def _write_part(self, lost: Difference, index: JobIndex) -> bool:
        """Write a part again from what the stored pictures tell, if that gives its hash."""
        assert lost.task is not None
        task = next(one for one in index.finished(lost.task) if one.receipt.part == lost.subject)
        for data in part_forms(self._rows(task)):
            if hashlib.sha256(data).hexdigest() == task.receipt.part_sha256:
                self._store.delete(lost.subject)
                self._store.put(lost.subject, data)
                return True
        return False

    def _rows(self, task: Finished) -> list[ManifestRow]:
        try:
            text = self._store.get(keys.chunk(self.status.id, task.number))
        except NotFound:
            return []
        chunk = Chunk.model_validate_json(text)
        place = TaskPlace.of(chunk, task.generation)
        return self._sink.stored_pictures(place, chunk, set(rows_of(chunk)))


def _settled(status: JobStatus) -> bool:
    """Whether what nothing lists will never be listed: the workers of a job that was cancelled may
    still store what they had in hand, and list it last."""
    if status.state is not JobState.CANCELLED:
        return True
    return status.ended_at is not None and datetime.now(UTC) - status.ended_at > SETTLED


def report(verifier: Verifier, folder: Path, *, repair: bool) -> Iterator[dict[str, Any]]:
    """The lines of the answer; one at least every few seconds, so that no client gives up.

    Args:
        folder: on a disk, for what is known of the job meanwhile.
    """
    count = repaired = 0
    generation = verifier.status.generation
    signs = _Signs(verifier)
    with job_index(folder) as index:
        for found in verifier.compare(index):
            if found is None:
                yield from signs.due()
                continue
            count += 1
            if repair:
                index.add_difference(found)
            yield {"difference": found._asdict()}
        if repair and count:
            for result in verifier.repair(index):
                if result is None:
                    yield from signs.due()
                else:
                    repaired, generation = result
    yield {
        "verified": {
            "pictures": verifier.pictures,
            "differences": count,
            "left": count - repaired,
            "generation": generation,
        }
    }


class _Signs:
    """Lines that only say that a verification goes on."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._told = time.monotonic()

    def due(self) -> Iterator[dict[str, Any]]:
        """One, if the last one was long ago."""
        if time.monotonic() > self._told + SIGN_SECONDS:
            self._told = time.monotonic()
            yield {"checked": {"pictures": self._verifier.pictures}}
