"""Requests become resolved renders, renders become chunks; the store has them before the queue."""

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import accumulate, count
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from farm.checkpoints.registry import CheckpointRegistry
from farm.errors import (
    AllRejected,
    Conflict,
    InvalidInput,
    JobCancelled,
    NotFound,
    OverQuota,
    QueueFull,
    RejectedRender,
    TooLarge,
)
from farm.ingest.adapters import Adapters
from farm.ingest.assets import Assets
from farm.ingest.chunks import Cutter, TaskLimits, shard_size_of
from farm.ingest.job_record import ClosedRecord, JobRecord
from farm.ingest.ndjson import Entries, placed
from farm.ingest.piece import Piece, check_lanes, too_many_lanes
from farm.ingest.resolver import Resolver
from farm.job import (
    DEFAULT_ROW_STEPS_PER_SECOND,
    MAX_JOB_LANES,
    MAX_PIECE_LINES,
    RETENTION_DAYS,
    Chunk,
    JobOptions,
    JobState,
    job_id,
)
from farm.queue import MAX_ROWS, JobHeader, JobStatus, Queue
from farm.sinks.registry import Sinks
from farm.spec import Lane, canonical_json
from farm.store import Store, keys

WRITERS = 16  # chunks written at a time; a call to S3 takes some 30 ms
MAX_LISTED = 100  # refused lines that the answer to a whole submission names
MAX_INLINE_BYTES = 8 * 1024  # of all chunks of a job that travels inline


class Submission(NamedTuple):
    """What became of a call: the job, what was taken and what was not."""

    job: str
    created: bool
    renders: int
    pictures: int
    rejected: tuple[RejectedRender, ...]


class Ingest:
    """The only way into the farm; safe to call from many threads and many gateways."""

    def __init__(
        self,
        queue: Queue,
        store: Store,
        registry: CheckpointRegistry,
        assets: Assets,
        paces: Callable[[], Mapping[str, float]] = dict,
        *,
        retention_days: float = RETENTION_DAYS,
    ) -> None:
        self.queue = queue
        self._store = store
        self._sinks = Sinks(store, Path())  # only asked what they are; none stores anything
        self.adapters = Adapters(store, assets, registry)
        self._resolver = Resolver(registry, assets, self.adapters)
        self._paces = paces
        self._retention_days = retention_days
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="chunks")

    def submit(
        self,
        tenant: str,
        options: JobOptions,
        entries: Entries,
        all_or_none: bool = False,
    ) -> Submission:
        """A whole job in one call.

        Raises:
            AllRejected: none of the entries can be rendered, or one cannot and all were wanted.
        """
        content = hashlib.sha256(entries.content()).hexdigest()
        record = self._record(tenant, options, content)
        known = self._known(record, options)
        piece = self.cut(record, 0, 0, entries)
        if known is not None:
            return self._feed(self.record(known, tenant), False, piece, entries, all_or_none)
        if not piece.chunks or (all_or_none and piece.rejected):
            raise AllRejected(piece.rejected[:MAX_LISTED])
        check_lanes(len(piece.lanes))
        if len(piece.chunks) > MAX_ROWS:
            record, created = self.open(tenant, options, content=content)
            return self._feed(record, created, piece, entries, all_or_none)
        record = record.model_copy(update={"whole": True, "rejected": len(piece.rejected)})
        header = self._writers.submit(self._store_record, record)
        self.write(piece)
        header.result()
        inline = sum(len(text.encode()) for text in piece.texts) <= MAX_INLINE_BYTES
        try:
            opened = self.queue.submit(
                _header(record, options), piece.drafts(inline=inline), len(piece.rejected)
            )
        except (Conflict, OverQuota, QueueFull):
            # Plainly refused; after another failure it may be there.
            self._discard(record, piece)
            raise
        if opened.job == record.job:
            return Submission(record.job, True, piece.renders, piece.pictures, piece.rejected)
        self._discard(record, piece)  # no caller knows this id
        return self._feed(self.record(opened.job, tenant), False, piece, entries, all_or_none)

    def open(
        self, tenant: str, options: JobOptions, *, content: str = "stream"
    ) -> tuple[JobRecord, bool]:
        """A job that comes in by pieces; with a known idempotency key the one that is there."""
        record = self._record(tenant, options, content)
        self._known(record, options)
        self._store_record(record)
        try:
            opened = self.queue.open(_header(record, options))
        except (Conflict, OverQuota, QueueFull):
            self._discard(record)
            raise
        if opened.job == record.job:
            return record, True
        self._discard(record)
        return self.record(opened.job, tenant), False

    def record(self, job: str, tenant: str) -> JobRecord:
        try:
            record = JobRecord.model_validate_json(self._store.get(keys.header(job)))
        except NotFound:
            record = None
        if record is None or record.tenant != tenant:
            raise NotFound(f"there is no job {job}", field="job", hint="farm ls shows yours")
        return record

    def append(
        self, record: JobRecord, number: int, first: int, groups: Sequence[Entries]
    ) -> list[Piece]:
        """Pieces with consecutive numbers; if one of them is refused, none was appended. Sent again
        unchanged they change nothing.

        Args:
            number: of the first piece.
            first: index of its first render in the job.
        """
        firsts = list(accumulate(map(len, groups), initial=first))[:-1]
        pieces = [
            self._piece(record, at, start, entries)
            for at, start, entries in zip(count(number), firsts, groups, strict=False)
        ]
        state = self.queue.status(record.job, record.tenant).state
        if state not in (JobState.OPEN, JobState.CANCELLED):  # all of it came in before
            for at, piece in zip(count(number), pieces, strict=False):
                self.compare(record.job, at, piece)
            return [piece._replace(again=True) for piece in pieces]
        lanes = set[Lane]().union(*(piece.lanes for piece in pieces))
        if not self.queue.note_lanes(record.job, lanes, MAX_JOB_LANES):
            raise too_many_lanes()
        self.write(*pieces)
        taken = []
        for at, start, entries, piece in zip(count(number), firsts, groups, pieces, strict=False):
            content = hashlib.sha256(f"{start}:".encode() + entries.content()).hexdigest()
            new = self.queue.append(record.job, at, content, piece.drafts(), len(piece.rejected))
            taken.append(piece._replace(again=not new))
        return taken

    def _piece(self, record: JobRecord, number: int, first: int, entries: Entries) -> Piece:
        if len(entries) > MAX_PIECE_LINES:
            raise TooLarge(
                f"{len(entries):,} renders in one piece; at most {MAX_PIECE_LINES:,} are allowed",
                field="piece",
            )
        piece = self.cut(record, number, first, entries)
        if len(piece.chunks) > MAX_ROWS:
            raise TooLarge(
                f"the piece makes {len(piece.chunks)} tasks; {MAX_ROWS} are allowed",
                field="piece",
                hint=f"send at most {MAX_ROWS} renders in a piece",
            )
        return piece

    def close(self, record: JobRecord, pieces: int) -> None:
        """No more pieces come."""
        self.queue.close(record.job, pieces)
        # After it: the queue knows whether all are there. A caller who hears of it finds both.
        rejected = self.queue.status(record.job, record.tenant).rejected
        closed = ClosedRecord(pieces=pieces, rejected=rejected)
        self._store.put(keys.closed(record.job), closed.model_dump_json().encode())

    def cancel(self, job: str, tenant: str) -> None:
        """End a job."""
        if self.queue.cancel(job, tenant) is JobState.CANCELLED:
            self.note_cancelled(job)

    def note_cancelled(self, job: str) -> None:
        """Keep beside a job that it was cancelled, should the queue be lost."""
        self._store.put(keys.cancelled(job), b"")
        self.queue.cancellation_noted(job)

    def resolve(self, tenant: str, options: JobOptions, first: int, entries: Entries) -> Piece:
        """What the entries would become in a job of their own; nothing is stored."""
        return self.cut(self._record(tenant, options, "estimate"), 0, first, entries)

    def cut(self, record: JobRecord, number: int, first: int, entries: Entries) -> Piece:
        """Resolve the entries and cut them into tasks, lane by lane. The same input gives the
        same chunks."""
        batch = self._resolver.batch(record.tenant, seed=record.seed)
        renders, refused = batch.resolve_all(entries, first)
        rejected = tuple(
            RejectedRender(first + place, placed(error, entries[place]))
            for place, error in refused.items()
        )
        chunks = tuple(_cutter(record).cut(number, renders))
        texts = tuple(chunk.model_dump_json() for chunk in chunks)
        return Piece(chunks, texts, rejected)

    def _known(self, record: JobRecord, options: JobOptions) -> str | None:
        """The job that the same submission has made before; a new one must not be too late."""
        job = None
        if options.idempotency_key is not None:
            job = self.queue.find_submitted(_header(record, options))
        if job is None:
            options.check_deadline()
        return job

    def _feed(
        self,
        record: JobRecord,
        created: bool,
        piece: Piece,
        entries: Entries,
        all_or_none: bool,
    ) -> Submission:
        """Bring a long job in; of one that is known, what an interrupted call may have left."""
        if not created:
            status = self.queue.status(record.job, record.tenant)
            if status.state is not JobState.OPEN:
                return _first_answer(status, piece, len(entries), all_or_none)
        feed = Feed(self, record)
        try:
            for group in entries.pieces():
                feed.add(group)
            feed.close()
        except BaseException:
            if created:
                self.abandon(record)
            raise
        return Submission(record.job, created, piece.renders, piece.pictures, piece.rejected)

    def abandon(self, record: JobRecord) -> None:
        """End a job whose caller went away in the middle, unless the caller can come back."""
        if not record.options.get("idempotency_key"):
            self.cancel(record.job, record.tenant)

    def _record(self, tenant: str, options: JobOptions, content: str) -> JobRecord:
        shard_size = shard_size_of(options, self._sinks.get(options.sink))
        kept = options.model_dump(mode="json")
        marks = {name: value for name, value in kept.items() if name != "idempotency_key"}
        fingerprint = hashlib.sha256(f"{canonical_json(marks)}:{content}".encode()).hexdigest()
        return JobRecord(
            job=job_id(),
            tenant=tenant,
            options=kept,
            seed=secrets.randbits(48) if options.seed is None else options.seed,
            sink=options.sink,
            format=options.format,
            fingerprint=fingerprint,
            created_at=datetime.now(UTC),
            paces=dict(self._paces()),
            shard_size=shard_size,
            retention_days=self._retention_days,
        )

    def write(self, *pieces: Piece) -> None:
        """Store the chunks; all of them are there when this returns."""
        chunks = [chunk for piece in pieces for chunk in piece.chunks]
        texts = [text for piece in pieces for text in piece.texts]
        for _ in self._writers.map(self._write_chunk, chunks, texts):
            pass

    def compare(self, job: str, number: int, piece: Piece) -> None:
        """Refuse a piece that is not the same as the one of this number that is stored."""
        for _ in self._writers.map(self._compare_chunk, piece.chunks, piece.texts):
            pass
        more = len(piece.chunks)
        if more < MAX_PIECE_LINES:
            following = keys.chunk(job, number * MAX_PIECE_LINES + more)
            if self._store.size(following) is not None:
                raise _other_content(job)

    def _write_chunk(self, chunk: Chunk, text: str) -> None:
        if not self._store.put(keys.chunk(chunk.job, chunk.number), text.encode()):
            self._compare_chunk(chunk, text)

    def _compare_chunk(self, chunk: Chunk, text: str) -> None:
        try:
            stored = self._store.get(keys.chunk(chunk.job, chunk.number))
        except NotFound:
            if self.queue.status(chunk.job, chunk.tenant).state is JobState.CANCELLED:
                raise JobCancelled(f"job {chunk.job} was cancelled") from None
            raise Conflict(
                f"job {chunk.job} is closed, and had fewer renders", field="piece"
            ) from None
        if not _is_chunk(stored, text.encode(), chunk):
            raise _other_content(chunk.job)

    def _store_record(self, record: JobRecord) -> None:
        self._store.put(keys.header(record.job), record.model_dump_json().encode())

    def _discard(self, record: JobRecord, piece: Piece | None = None) -> None:
        chunks = piece.chunks if piece else ()
        self._store.delete_many([keys.chunk(one.job, one.number) for one in chunks])
        self._store.delete(keys.header(record.job))


class Feed:
    """A job that one caller brings in order, piece by piece, through one connection.

    With ``all_or_none`` the first refused render cancels it. With ``again`` it has come in before,
    as a whole, and is only compared.
    """

    def __init__(
        self, ingest: Ingest, record: JobRecord, all_or_none: bool = False, *, again: bool = False
    ) -> None:
        self._all_or_none = all_or_none
        self._again = again
        self._ingest = ingest
        self._record = record
        self._lanes: set[Lane] = set()
        self._cuts = 0
        self._pieces = 0
        self.lines = 0
        self.renders = 0
        self.pictures = 0
        self.rejected_count = 0
        self.rejected: list[RejectedRender] = []  # the first ones; memory stays flat

    def add(self, entries: Entries) -> None:
        piece = self._ingest.cut(self._record, self._cuts, self.lines, entries)
        if self._all_or_none and piece.rejected:
            if not self._again:
                self._ingest.cancel(self._record.job, self._record.tenant)
            raise AllRejected(piece.rejected[:MAX_LISTED])
        self._lanes |= piece.lanes
        check_lanes(len(self._lanes))
        if self._again:
            self._ingest.compare(self._record.job, self._cuts, piece)
        else:
            self._append(piece)
        self._cuts += 1
        self.lines += len(entries)
        self.renders += piece.renders
        self.pictures += piece.pictures
        self.rejected_count += len(piece.rejected)
        self.rejected += piece.rejected[: max(MAX_LISTED - len(self.rejected), 0)]

    def _append(self, piece: Piece) -> None:
        self._ingest.write(piece)
        drafts = piece.drafts()
        for start in range(0, max(len(drafts), 1), MAX_ROWS):
            texts = "\n".join(piece.texts[start : start + MAX_ROWS])
            refused = 0 if start else len(piece.rejected)
            self._ingest.queue.append(
                self._record.job,
                self._pieces,
                hashlib.sha256(f"{refused}:{texts}".encode()).hexdigest(),
                drafts[start : start + MAX_ROWS],
                refused,
            )
            self._pieces += 1

    def close(self) -> None:
        """Raises ``AllRejected`` where nothing came in that can be rendered."""
        if self._again:
            status = self._ingest.queue.status(self._record.job, self._record.tenant)
            if (self.pictures, self.rejected_count) != (status.images.total, status.rejected):
                raise _other_content(self._record.job)
        elif self.renders:
            self._ingest.close(self._record, self._pieces)
        else:
            self._ingest.cancel(self._record.job, self._record.tenant)
        if not self.renders and not self.rejected:
            raise InvalidInput("there is nothing to render in it", field="renders")
        if not self.renders:
            raise AllRejected(self.rejected)


def _cutter(record: JobRecord) -> Cutter:
    def limits(lane: Lane) -> TaskLimits:
        if record.shard_size is not None:
            return TaskLimits.of_shard(record.shard_size, lane)
        return TaskLimits.by_pace(record.paces.get(str(lane), DEFAULT_ROW_STEPS_PER_SECOND))

    return Cutter(record.job, record.tenant, record.sink, record.format, limits)


def _first_answer(status: JobStatus, piece: Piece, renders: int, all_or_none: bool) -> Submission:
    """Of a job that is whole, whatever the farm would take of it by now: what its renders name may
    be gone. Which of them were refused is told if as many would be."""
    rejected = piece.rejected if len(piece.rejected) == status.rejected else ()
    if all_or_none and status.rejected:
        told = f"job {status.id} was made without {status.rejected:,} of its renders"
        raise AllRejected(rejected[:MAX_LISTED], told, field="renders")
    accepted = renders - status.rejected
    return Submission(status.id, False, accepted, status.images.total, rejected)


def _is_chunk(stored: bytes, data: bytes, chunk: Chunk) -> bool:
    """Whether the chunk is stored: its bytes, or as an earlier version of the farm wrote it."""
    if stored == data:
        return True
    try:
        found = Chunk.model_validate_json(stored)
    except ValidationError:
        return False
    return found.model_copy(update={"v": chunk.v}) == chunk


def _other_content(job: str) -> Conflict:
    return Conflict(f"this piece of job {job} came in before with other content", field="piece")


def _header(record: JobRecord, options: JobOptions) -> JobHeader:
    return JobHeader(record.job, record.tenant, options, record.fingerprint)
