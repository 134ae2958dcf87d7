"""``farm verify``: reads what the store holds of a job, and repairs what can be."""

import hashlib
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from farm.errors import Conflict, FarmError, NotFound
from farm.formats.manifest import ManifestRow, merge
from farm.job import SETTLED_HOURS, TERMINAL_JOBS, Chunk, JobState
from farm.queue import Finished, JobStatus, Queue
from farm.sinks.early import early_parts, early_rows
from farm.sinks.parts import part_forms, rows_of, task_rows
from farm.sinks.protocol import TaskPlace
from farm.sinks.registry import Sinks
from farm.spec import canonical_json
from farm.store import Store, keys
from farm.verify.compare import Comparison, Counts, Difference, Kind, Part

SIGN_SECONDS = 2.0  # between two lines
SETTLED = timedelta(hours=SETTLED_HOURS)
DAMAGED = {Kind.MISSING, Kind.WRONG_SIZE, Kind.WRONG_SHA256}


class Repaired(NamedTuple):
    """The result of a repair."""

    left: int  # differences that nothing here can repair
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
        self._done: dict[int, list[Finished]] = {}  # by the task's number, the oldest first
        self._comparison: Comparison | None = None

    def compare(self) -> Iterator[Difference | None]:
        """Every difference; None after each task, as a sign of life."""
        job = self.status.id
        objects = {entry.key: entry.size for entry in self._store.list(keys.prefix(job))}
        comparison = self._comparison = Comparison(job, self._sink, objects, self._sha256)
        after = 0
        while finished := self._queue.finished(job, after):
            for one in finished:
                self._done.setdefault(one.number, []).append(one)
            after = finished[-1].position
        lost: dict[int, int] = {}
        after = 0
        while failures := self._queue.failures(job, after):
            lost |= {failure.number: failure.pictures for failure in failures}
            after = failures[-1].position
        for number in sorted({*self._done, *lost}):
            parts = [self._part(one) for one in self._done.get(number, ())]
            yield from comparison.task(number, parts, lost.get(number, 0))
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

    @property
    def pictures(self) -> int:
        """Checked so far."""
        return self._comparison.counts.done if self._comparison else 0

    def repair(self, differences: Sequence[Difference]) -> Repaired:
        """Remove orphans, of a cancelled job once its workers are done with it; write lost parts
        again where what is stored gives the same bytes; and have the pictures of lost and damaged
        objects made again as a new generation.

        Raises:
            Conflict: the pictures of some tasks cannot be made again; the rest was repaired.
        """
        job = self.status.id
        now = self._queue.status(job, self._tenant)
        self._check_ended(now)
        if now.generation != self.status.generation:
            raise Conflict(f"job {job} was retried meanwhile", hint="verify it again")
        mended: list[Difference] = []
        damaged: dict[int, list[Difference]] = {}
        data = keys.all_data(job)
        settled = _settled(now)
        for one in differences:
            if one.kind is Kind.ORPHAN:
                if settled:
                    self._store.delete(one.subject)
                    mended.append(one)
            elif one.kind in (Kind.PART_MISSING, Kind.PART_CHANGED) and self._write_part(one):
                mended.append(one)
            elif one.kind in DAMAGED and one.task is not None and one.subject.startswith(data):
                damaged.setdefault(one.task, []).append(one)
        remade, refused = self._invalidate(damaged)
        generation = self._queue.retry(job, self._tenant) if remade else now.generation
        mended += remade
        if mended:
            told = canonical_json([one._asdict() for one in mended])
            self._store.put(f"{keys.repairs(job)}{secrets.token_hex(8)}.json", told.encode())
        if refused is not None:
            raise refused
        return Repaired(len(differences) - len(mended), generation)

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
        self, damaged: Mapping[int, Sequence[Difference]]
    ) -> tuple[list[Difference], Conflict | None]:
        """Count damaged pictures as failed and delete their objects, task by task.

        Returns what a retry will make again, and why some of it cannot be.
        """
        remade: list[Difference] = []
        refused = None
        for number, found in damaged.items():
            try:
                self._count_failed(number, {one.subject for one in found})
            except Conflict as error:  # the others are made again all the same
                refused = error
                continue
            for one in found:
                self._store.delete(one.subject)
            remade += found
        return remade, refused

    def _count_failed(self, number: int, damaged: Set[str]) -> None:
        """Tell the queue how many of the task's pictures are left, on its newest receipt."""
        job, tasks = self.status.id, self._done[number]
        rows = merge(task_rows(self._store, job, number, range(self.status.generation + 1)))
        good = sum(
            len(stored.rows)
            for stored in self._sink.objects(rows.values())
            if stored.key not in damaged
        )
        earlier = sum(task.receipt.done for task in tasks[:-1])
        self._queue.invalidate(job, self._tenant, tasks[-1], good - earlier)

    def _write_part(self, lost: Difference) -> bool:
        """Write a part again from what the stored pictures tell, if that gives its hash."""
        assert lost.task is not None
        task = next(one for one in self._done[lost.task] if one.receipt.part == lost.subject)
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


def report(verifier: Verifier, *, repair: bool) -> Iterator[str]:
    """The lines of the answer; one at least every few seconds, so that no client gives up."""
    differences: list[Difference] = []
    told = time.monotonic()
    try:
        for found in verifier.compare():
            if found is not None:
                differences.append(found)
                yield _line("difference", found._asdict())
            elif time.monotonic() > told + SIGN_SECONDS:
                told = time.monotonic()
                yield _line("checked", {"pictures": verifier.pictures})
        left, generation = len(differences), verifier.status.generation
        if repair and differences:
            left, generation = verifier.repair(differences)
        result = {
            "pictures": verifier.pictures,
            "differences": len(differences),
            "left": left,
            "generation": generation,
        }
        yield _line("verified", result)
    except FarmError as error:  # the status line has gone out long ago
        yield _line("error", error.to_dict())


def _line(name: str, content: dict[str, Any]) -> str:
    return json.dumps({name: content}) + "\n"
