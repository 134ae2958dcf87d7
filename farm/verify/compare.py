"""A job's manifest, queue and store side by side: what of them differs."""

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

from farm.formats.manifest import ManifestRow, merge, read_part
from farm.job import Receipt
from farm.sinks.protocol import Sink, StoredObject
from farm.store import keys
from farm.verify.difference import Difference, Kind
from farm.verify.index import JobIndex


class Part(NamedTuple):
    """A task that the queue has a receipt of, and what lies at its part's key."""

    generation: int
    receipt: Receipt
    data: bytes | None


class Counts(NamedTuple):
    """Pictures, by what became of them."""

    done: int
    failed: int


class Comparison:
    """One job's, task by task.

    Args:
        job: its id.
        sink: its own.
        index: its own, with everything that lies in the store below the job's prefix.
        sha256_of: reads an object.
    """

    def __init__(
        self,
        job: str,
        sink: Sink,
        index: JobIndex,
        sha256_of: Callable[[str], str],
    ) -> None:
        self._job = job
        self._sink = sink
        self._index = index
        self._sha256_of = sha256_of
        self._done = self._failed = 0
        self._whole = True  # every part could be read, so that what is not listed is an orphan

    @property
    def counts(self) -> Counts:
        return Counts(self._done, self._failed)

    def task(self, number: int, parts: Sequence[Part], lost: int = 0) -> Iterator[Difference]:
        """One task in all its generations.

        Args:
            number: of the task.
            parts: of its generations, the oldest first.
            lost: pictures of its last generation if that ran out of attempts.
        """
        self._failed += lost
        yield from self._object(keys.chunk(self._job, number), number)
        rows: list[ManifestRow] = []
        unread = False
        for part in parts:
            if part.receipt.part:
                found = yield from self._part(number, part)
                unread |= found is None
                rows += found or ()
        if unread:  # what it lists may have taken the place of what the other parts list
            self._whole = False
            return
        counted = merge(rows)
        known = self._index.add_pictures(counted)  # other tasks list them
        for row in counted.values():
            if row.picture in known:
                name = row.file or f"picture {row.render}-{row.image}"
                yield Difference(Kind.LISTED_TWICE, name, task=number)
            elif row.file is not None:
                self._done += 1
            elif not lost:
                self._failed += 1
        listed = list(self._sink.objects(rows))
        sizes = self._index.list_objects([stored.key for stored in listed])
        for stored in listed:
            of_use = [row for row in stored.rows if counted[row.picture] is row]
            if not of_use:
                # Made again after it was lost; two objects with one picture are one too many.
                if stored.key in sizes:
                    yield Difference(Kind.LISTED_TWICE, stored.key, task=number)
            elif any(row.picture not in known for row in of_use):
                yield from self._stored(number, stored, sizes.get(stored.key))

    def early(self, rows: Sequence[ManifestRow]) -> None:
        """Pictures that readers are shown although no part has them; they are not orphans."""
        self._index.list_objects([stored.key for stored in self._sink.objects(rows)])

    def end(self, counted: Counts, *, generation: int, complete: bool) -> Iterator[Difference]:
        """What no task answers for; ``counted`` is what the queue says.

        Args:
            counted: the queue's own.
            generation: the job's.
            complete: the job ended by itself, so that its last file must be there.
        """
        yield from self._object(keys.header(self._job), None)
        ends = [keys.success(self._job, number) for number in range(generation + 1)]
        self._index.list_objects([*ends, keys.closed(self._job), keys.cancelled(self._job)])
        if complete:
            yield from self._object(ends[-1], None)
        if not self._whole:
            return  # the unread parts may list anything
        # Chunks are what was submitted; nothing lists those of expired and cancelled tasks.
        kept = tuple(
            start(self._job) for start in (keys.repairs, keys.chunks, keys.early, keys.all_scores)
        )
        for key in self._index.unlisted():
            if not key.startswith(kept):
                yield Difference(Kind.ORPHAN, key)
        for name, ours, theirs in zip(Counts._fields, self.counts, counted, strict=True):
            if ours != theirs:
                yield Difference(Kind.COUNT, name, expected=str(theirs), found=str(ours))

    def _object(self, key: str, number: int | None) -> Iterator[Difference]:
        if not self._index.list_objects([key]):
            yield Difference(Kind.MISSING, key, task=number)

    def _part(
        self, number: int, part: Part
    ) -> Generator[Difference, None, list[ManifestRow] | None]:
        receipt = part.receipt
        self._index.list_objects([receipt.part])
        if part.data is None:
            yield Difference(Kind.PART_MISSING, receipt.part, receipt.part_sha256, task=number)
            return None
        sha256 = hashlib.sha256(part.data).hexdigest()
        if sha256 == receipt.part_sha256:
            return read_part(part.data)
        yield Difference(Kind.PART_CHANGED, receipt.part, receipt.part_sha256, sha256, number)
        return None

    def _stored(self, number: int, stored: StoredObject, size: int | None) -> Iterator[Difference]:
        if size is None:
            yield Difference(Kind.MISSING, stored.key, stored.sha256, task=number)
        elif (sha256 := self._sha256_of(stored.key)) != stored.sha256:
            kind = Kind.WRONG_SHA256 if size == stored.size else Kind.WRONG_SIZE
            yield Difference(kind, stored.key, stored.sha256, sha256, number)
