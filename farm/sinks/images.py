"""``images``: one object per picture, stored as soon as the picture is made."""

import contextlib
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from pathlib import Path, PurePosixPath

from farm.errors import Conflict, NotFound
from farm.formats.manifest import ManifestRow
from farm.formats.picture_file import CONTENT_TYPES
from farm.formats.picture_record import PictureRecord
from farm.job import Chunk
from farm.sinks.parts import records_of
from farm.sinks.protocol import RowId, Source, StoredObject, TaskPlace
from farm.store import Store

FEW = 64  # pictures that are looked for one by one


class Images:
    """A row's ``file`` is the picture's key."""

    sharded = False
    tokens_alone = False

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store

    def store_picture(self, place: TaskPlace, record: PictureRecord, data: bytes) -> ManifestRow:
        key = place.data + record.file_name
        if not self._store.put(key, data, content_type=CONTENT_TYPES[record.format]):
            data = self._store.get(key)
        return record.stored_row(key, data)

    def store_task(self, place: TaskPlace, rows: Sequence[ManifestRow]) -> Sequence[ManifestRow]:
        return rows

    def forget(self, place: TaskPlace) -> None:
        """Nothing waits."""

    def stored_pictures(
        self, place: TaskPlace, chunk: Chunk, wanted: Set[RowId]
    ) -> list[ManifestRow]:
        told = records_of(chunk, place.generation, wanted).values()
        records = {place.data + record.file_name: record for record in told}
        if not records:
            return []
        # A list of a large folder costs more than looking for a few files.
        few = len(records) <= FEW
        there = records.keys() if few else {e.key for e in self._store.list(_common(records))}
        found = []
        for key in records.keys() & there:
            # Not this picture, or gone again: it is rendered, and storing it tells what is wrong.
            with contextlib.suppress(Conflict, NotFound):
                found.append(records[key].stored_row(key, self._store.get(key)))
        return found

    def objects(self, rows: Iterable[ManifestRow]) -> Iterator[StoredObject]:
        for row in rows:
            if row.file is not None:
                assert row.size is not None
                assert row.sha256 is not None
                yield StoredObject(row.file, row.size, row.sha256, (row,))

    def source(self, row: ManifestRow) -> Source:
        assert row.file is not None
        assert row.size is not None
        return Source(row.file, PurePosixPath(row.file).name, row.size)


def _common(texts: Collection[str]) -> str:
    """The start that all of them share, so that a list of the store is not longer than needed."""
    first, last = min(texts), max(texts)
    length = 0
    while length < len(first) and first[length] == last[length]:
        length += 1
    return first[:length]
