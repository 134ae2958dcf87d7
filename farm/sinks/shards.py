"""``webdataset``, ``parquet`` and ``tokens``: all pictures of a task in one object, a shard."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from farm.errors import Conflict, NotFound, RenderError, StoreError
from farm.formats.manifest import ManifestColumns, ManifestRow
from farm.formats.picture_record import PictureRecord
from farm.job import Chunk
from farm.sinks.layout import Layout, Packed
from farm.sinks.parts import records_of
from farm.sinks.protocol import RowId, Source, StoredObject, TaskPlace
from farm.sinks.spool import Spool
from farm.store import Store

_json = json.JSONEncoder().encode  # as ``json.dumps`` does it

LATE = "it was made after the shard of its task was stored without it; retry the job"


class Spot(NamedTuple):
    """Where a picture lies; as JSON text, a row's ``file``."""

    key: str
    offset: int
    name: str  # of the picture by itself
    shard_size: int
    shard_sha256: str

    def __str__(self) -> str:
        return json.dumps(self)

    @staticmethod
    def stands_in(file: str | None) -> bool:
        """Whether a row's picture lies in a shard; else ``file`` is the picture's own name."""
        return file is not None and file.startswith("[")

    @classmethod
    def texts(cls, key: str, packed: Packed, names: Sequence[str], shard_sha256: str) -> list[str]:
        """The texts of all spots of one shard."""
        start, end = json.dumps(key), f'{len(packed.data)}, "{shard_sha256}"]'
        return [
            f"[{start}, {offset}, {_json(name)}, {end}"
            for offset, name in zip(packed.offsets, names, strict=True)
        ]

    @classmethod
    def of(cls, row: ManifestRow) -> "Spot":
        assert row.file is not None
        return cls(*json.loads(row.file))


class Shards:
    """Pictures wait in the folder until their task is whole."""

    sharded = True

    def __init__(self, store: Store, folder: Path, layout: Layout) -> None:
        self._store = store
        self._folder = folder
        self._layout = layout
        self.tokens_alone = layout.tokens_alone
        self._opening = threading.Lock()
        self._spools: dict[str, Spool] = {}

    def store_picture(self, place: TaskPlace, record: PictureRecord, data: bytes) -> ManifestRow:
        name = self._name(record.render, record.image, place)
        spool = self._spool(place)  # what the task's end removes, if it comes meanwhile
        row = record.stored_row(name, data)
        with self._waiting():
            spool.add(name, data)
        return row

    def store_task(self, place: TaskPlace, rows: Sequence[ManifestRow]) -> Sequence[ManifestRow]:
        told = ManifestColumns.of(rows)
        errors = list(enumerate(told.column("error")))
        failed = told.select([number for number, error in errors if error is not None])
        made = told.select([number for number, error in errors if error is None]).ordered()
        if not made:
            return failed
        stored = self._store_shard(place, made)
        return [*failed, *stored] if failed else stored

    def _store_shard(self, place: TaskPlace, made: ManifestColumns) -> Sequence[ManifestRow]:
        key = self._key(place)
        contents = self._contents(place, made)
        if contents is not None:
            packed = self._layout.pack(made, contents)
            if self._store.put(key, packed.data, content_type=self._layout.content_type):
                pictures = zip(made.column("render"), made.column("image"), strict=True)
                names = [self._name(*picture, place) for picture in pictures]
                sha256 = hashlib.sha256(packed.data).hexdigest()
                return made.replace(file=Spot.texts(key, packed, names, sha256))
        return self._found(place, made, self._store.get(key))

    def forget(self, place: TaskPlace) -> None:
        self._spool(place).remove()
        with self._opening:
            self._spools.pop(self._spool_name(place), None)

    def stored_pictures(
        self, place: TaskPlace, chunk: Chunk, wanted: Set[RowId]
    ) -> list[ManifestRow]:
        records = records_of(chunk, place.generation, wanted)
        try:
            return list(self._rows(place, records, self._store.get(self._key(place))))
        except (NotFound, Conflict, ValueError):
            return []  # nothing there, or damaged: it is rendered, and storing tells what is wrong

    def objects(self, rows: Iterable[ManifestRow]) -> Iterator[StoredObject]:
        shards: dict[tuple[str, int, str], list[ManifestRow]] = {}
        for row in rows:
            if row.file is not None:
                spot = Spot.of(row)
                name = spot.key, spot.shard_size, spot.shard_sha256
                shards.setdefault(name, []).append(row)
        for name, held in shards.items():
            yield StoredObject(*name, tuple(held))

    def source(self, row: ManifestRow) -> Source:
        spot = Spot.of(row)
        assert row.size is not None
        return Source(spot.key, spot.name, row.size, spot.offset)

    def _key(self, place: TaskPlace) -> str:
        return f"{place.data}{place.number:08d}{self._layout.suffix}"

    def _spool(self, place: TaskPlace) -> Spool:
        name = self._spool_name(place)
        with self._opening:
            return self._spools.setdefault(name, Spool(self._folder / name))

    @staticmethod
    def _spool_name(place: TaskPlace) -> str:
        return f"{place.job}.{place.generation}.{place.number}"

    def _name(self, render: int, image: int, place: TaskPlace) -> str:
        return self._layout.file_name(render, image, place.format)

    def _contents(self, place: TaskPlace, rows: ManifestColumns) -> Sequence[bytes] | None:
        """The rows' contents; None if some came from the store, where the shard then is."""
        names = rows.column("file")
        if any(map(Spot.stands_in, names)):
            return None
        if self.tokens_alone:
            return rows.column("tokens")
        with self._waiting():
            found = self._spool(place).read()
        return [found[name] for name in names] if found.keys() >= set(names) else None

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        """A full disk is a store that fails: it is asked again until there is room."""
        try:
            yield
        except OSError as error:
            message = f"pictures cannot wait in {self._folder}: {error.strerror or error}"
            raise StoreError(message) from error

    def _found(
        self, place: TaskPlace, made: Sequence[ManifestRow], data: bytes
    ) -> list[ManifestRow]:
        """The rows as the shard has them that another attempt has stored.

        Raises:
            Conflict: the object is not the shard of this task.
        """
        records = {row.picture: PictureRecord.of_row(row, place.format) for row in made}
        try:
            found = {row.picture: row for row in self._rows(place, records, data)}
        except ValueError as error:
            raise Conflict(
                f"{self._key(place)} is taken by something that is not a shard of this farm",
                hint="move it away, and retry the job",
            ) from error
        late = RenderError(LATE)
        return [found.get(key) or record.failed_row(late) for key, record in records.items()]

    def _rows(
        self, place: TaskPlace, records: Mapping[RowId, PictureRecord], data: bytes
    ) -> Iterator[ManifestRow]:
        key, sha256 = self._key(place), hashlib.sha256(data).hexdigest()
        for one in self._layout.unpack(data):
            record = records.get(one.picture)
            if record is not None:
                name = self._name(*one.picture, place)
                spot = Spot(key, one.offset, name, len(data), sha256)
                yield record.row_of(str(spot), one.facts, one.content)
