"""A job's manifest, queue and store side by side: what of them differs."""

import enum
import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import NamedTuple

from farm.formats.manifest import ManifestRow, merge, read_part
from farm.job import Receipt
from farm.sinks.protocol import Sink, StoredObject
from farm.store import keys


class Kind(enum.StrEnum):
    MISSING = "missing"  # an object that should be in the store
    WRONG_SIZE = "wrong-size"  # an object with pictures, and so its sha256
    WRONG_SHA256 = "wrong-sha256"  # such an object of the right size
    PART_MISSING = "part-missing"
    PART_CHANGED = "part-changed"  # other bytes than its receipt says
    LISTED_TWICE = "listed-twice"  # a picture
    ORPHAN = "orphan"  # an object that nothing lists
    COUNT = "count"  # the queue counts otherwise


class Difference(NamedTuple):
    kind: Kind
    subject: str  # a key, or the name of a counter
    expected: str = ""
    found: str = ""
    task: int | None = None  # number of the task it belongs to


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
        objects: everything that lies in the store below its prefix, with sizes.
        sha256_of: reads an object.
    """

    def __init__(
        self,
        job: str,
        sink: Sink,
        objects: Mapping[str, int],
        sha256_of: Callable[[str], str],
    ) -> None:
        self._job = job
        self._sink = sink
        self._objects = objects
        self._sha256_of = sha256_of
        self._listed = {keys.header(job), keys.closed(job), keys.cancelled(job)}
        self._pictures: set[tuple[int, int]] = set()
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
        for row in counted.values():
            if row.picture in self._pictures:
                name = row.file or f"picture {row.render}-{row.image}"
                yield Difference(Kind.LISTED_TWICE, name, task=number)
            elif row.file is not None:
                self._done += 1
            elif not lost:
                self._failed += 1
        for stored in self._sink.objects(rows):
            self._listed.add(stored.key)
            of_use = [row for row in stored.rows if counted[row.picture] is row]
            if not of_use:
                # Made again after it was lost; two objects with one picture are one too many.
                if stored.key in self._objects:
                    yield Difference(Kind.LISTED_TWICE, stored.key, task=number)
            elif any(row.picture not in self._pictures for row in of_use):
                yield from self._stored(number, stored)
        self._pictures |= counted.keys()

    def early(self, rows: Sequence[ManifestRow]) -> None:
        """Pictures that readers are shown although no part has them; they are not orphans."""
        self._listed.update(stored.key for stored in self._sink.objects(rows))

    def end(self, counted: Counts, *, generation: int, complete: bool) -> Iterator[Difference]:
        """What no task answers for; ``counted`` is what the queue says.

        Args:
            counted: the queue's own.
            generation: the job's.
            complete: the job ended by itself, so that its last file must be there.
        """
        yield from self._object(keys.header(self._job), None)
        ends = [keys.success(self._job, number) for number in range(generation + 1)]
        self._listed.update(ends)
        if complete:
            yield from self._object(ends[-1], None)
        if not self._whole:
            return  # the unread parts may list anything
        # Chunks are what was submitted; nothing lists those of expired and cancelled tasks.
        kept = tuple(
            start(self._job) for start in (keys.repairs, keys.chunks, keys.early, keys.all_scores)
        )
        for key in self._objects.keys() - self._listed:
            if not key.startswith(kept):
                yield Difference(Kind.ORPHAN, key)
        for name, ours, theirs in zip(Counts._fields, self.counts, counted, strict=True):
            if ours != theirs:
                yield Difference(Kind.COUNT, name, expected=str(theirs), found=str(ours))

    def _object(self, key: str, number: int | None) -> Iterator[Difference]:
        self._listed.add(key)
        if key not in self._objects:
            yield Difference(Kind.MISSING, key, task=number)

    def _part(
        self, number: int, part: Part
    ) -> Generator[Difference, None, list[ManifestRow] | None]:
        receipt = part.receipt
        self._listed.add(receipt.part)
        if part.data is None:
            yield Difference(Kind.PART_MISSING, receipt.part, receipt.part_sha256, task=number)
            return None
        sha256 = hashlib.sha256(part.data).hexdigest()
        if sha256 == receipt.part_sha256:
            return read_part(part.data)
        yield Difference(Kind.PART_CHANGED, receipt.part, receipt.part_sha256, sha256, number)
        return None

    def _stored(self, number: int, stored: StoredObject) -> Iterator[Difference]:
        size = self._objects.get(stored.key)
        if size is None:
            yield Difference(Kind.MISSING, stored.key, stored.sha256, task=number)
        elif (sha256 := self._sha256_of(stored.key)) != stored.sha256:
            kind = Kind.WRONG_SHA256 if size == stored.size else Kind.WRONG_SIZE
            yield Difference(kind, stored.key, stored.sha256, sha256, number)
