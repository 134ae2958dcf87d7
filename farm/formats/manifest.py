"""The manifest: one row per picture, kept as one parquet file per task."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

import pyarrow as pa
import pyarrow.parquet as pq

from farm.errors import FarmError, StoreError, from_dict

_SCHEMA = pa.schema(
    [
        pa.field("job", pa.string(), nullable=False),
        pa.field("generation", pa.int32(), nullable=False),
        pa.field("render", pa.int64(), nullable=False),
        pa.field("image", pa.int32(), nullable=False),
        pa.field("file", pa.string()),
        pa.field("sha256", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("seed", pa.uint64(), nullable=False),
        pa.field("spec_sha256", pa.string(), nullable=False),
        pa.field("spec", pa.string(), nullable=False),
        pa.field("tokens", pa.binary()),
        pa.field("tokens_sha256", pa.string()),
        pa.field("numerics", pa.string(), nullable=False),
        pa.field("notes", pa.list_(pa.field("element", pa.string(), nullable=False))),
        pa.field("error", pa.string()),
        pa.field("metadata", pa.string()),
        pa.field("confidence", pa.float64()),
    ]
)


# Compressing a column takes 20 microseconds and more. It is of use for long texts; the others are
# hashes, or small in a dictionary, which in turn is of no use where every value differs.
_LONG = {"file", "spec", "tokens", "notes.list.element", "error", "metadata"}
_DIFFERENT = {"render", "file", "seed", "spec", "tokens"}
_DIFFERENT |= {"sha256", "spec_sha256", "tokens_sha256"}
_PATHS = ["notes.list.element" if name == "notes" else name for name in _SCHEMA.names]
_WRITING: Mapping[str, Any] = {
    "version": "2.6",
    "compression": {path: "zstd" if path in _LONG else "none" for path in _PATHS},
    "use_dictionary": [path for path in _PATHS if path not in _DIFFERENT],
}
_WRITING_BEFORE: Mapping[str, Any] = {"version": "2.6", "compression": "zstd"}


class ManifestRow(NamedTuple):
    """What is known of one picture; ``file`` to ``tokens_sha256`` are None where it failed."""

    job: str
    generation: int
    render: int
    image: int
    file: str | None  # where it is stored, in the words of the job's sink; a key for images
    sha256: str | None  # of the picture file
    size: int | None  # bytes of the picture file
    width: int
    height: int
    seed: int
    spec_sha256: str
    spec: str  # canonical JSON
    # uint16, little endian, row by row; a part in the store leaves them out where the file of the
    # picture is nothing else.
    tokens: bytes | None
    tokens_sha256: str | None  # of those bytes
    numerics: str
    notes: tuple[str, ...] = ()
    error: str | None = None  # JSON of ``FarmError.to_dict``
    metadata: str | None = None  # canonical JSON of what the user's row says besides
    confidence: float | None = None  # mean probability of its tokens, when each was fixed

    @property
    def picture(self) -> tuple[int, int]:
        """Names it in its job, whichever generation made it."""
        return self.render, self.image

    @property
    def failure(self) -> FarmError | None:
        return None if self.error is None else from_dict(json.loads(self.error))

    def public(self) -> dict[str, Any]:
        """The row as a line of ``manifest.jsonl``."""
        return {
            "render": self.render,
            "image": self.image,
            "generation": self.generation,
            "file": self.file,
            "sha256": self.sha256,
            "size": self.size,
            "width": self.width,
            "height": self.height,
            "seed": self.seed,
            "tokens_sha256": self.tokens_sha256,
            "numerics": self.numerics,
            "confidence": self.confidence,
            "notes": list(self.notes),
            "error": None if self.error is None else json.loads(self.error),
            "spec": json.loads(self.spec),
            "metadata": {} if self.metadata is None else json.loads(self.metadata),
        }


class ManifestColumns(Sequence[ManifestRow]):
    """Rows that are kept by columns, as files are written; a row is made when it is asked for."""

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """
        Args:
            columns: the values of each field of ``ManifestRow``, all in the order of the rows.
                Where ``spec`` need not be read for it, of ``prompt`` and ``common`` as well: what
                each says, and whatever else it says besides its seed.
        """
        self._columns = columns

    @classmethod
    def of(cls, rows: Iterable[ManifestRow]) -> "ManifestColumns":
        if isinstance(rows, ManifestColumns):
            return rows
        columns = list(zip(*rows, strict=True)) or [()] * len(ManifestRow._fields)
        return cls(dict(zip(ManifestRow._fields, columns, strict=True)))

    def __len__(self) -> int:
        return len(self.column("render"))

    def __iter__(self) -> Iterator[ManifestRow]:
        return map(ManifestRow, *map(self.column, ManifestRow._fields))

    @overload
    def __getitem__(self, wanted: int) -> ManifestRow: ...
    @overload
    def __getitem__(self, wanted: slice) -> "ManifestColumns": ...
    def __getitem__(self, wanted: int | slice) -> "ManifestRow | ManifestColumns":
        if isinstance(wanted, slice):
            return self.select(range(*wanted.indices(len(self))))
        return ManifestRow._make(self.column(name)[wanted] for name in ManifestRow._fields)

    def column(self, name: str) -> Sequence[Any]:
        """The values of one field."""
        return self._columns[name]

    @property
    def specs_read(self) -> bool:
        """Whether there are ``prompt`` and ``common``."""
        return "common" in self._columns

    def replace(self, **columns: Sequence[Any]) -> "ManifestColumns":
        """The same rows with other values in some columns."""
        return ManifestColumns({**self._columns, **columns})

    def select(self, numbers: Sequence[int]) -> "ManifestColumns":
        """The rows of these numbers, in their order."""
        if list(numbers) == list(range(len(self))):
            return self
        return ManifestColumns(
            {name: list(map(column.__getitem__, numbers)) for name, column in self._columns.items()}
        )

    def ordered(self) -> "ManifestColumns":
        """By render and image."""
        pictures = list(zip(self.column("render"), self.column("image"), strict=True))
        return self.select(sorted(range(len(self)), key=pictures.__getitem__))


def write_part(rows: Iterable[ManifestRow], *, as_before: bool = False) -> bytes:
    """The rows, ordered by render and image, as parquet; the same rows give the same bytes.

    Those that it gave before parts were compressed in part only, with ``as_before``.
    """
    ordered = ManifestColumns.of(rows).ordered()
    table = pa.Table.from_arrays(
        [pa.array(ordered.column(field.name), field.type) for field in _SCHEMA], schema=_SCHEMA
    )
    out = pa.BufferOutputStream()
    pq.write_table(table, out, **_WRITING_BEFORE if as_before else _WRITING)
    data: bytes = out.getvalue().to_pybytes()
    return data


def read_part(data: bytes) -> list[ManifestRow]:
    try:
        table = pq.read_table(pa.BufferReader(data), schema=_SCHEMA)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StoreError("a manifest part is damaged", hint="farm verify finds it") from error
    columns = [column.to_pylist() for column in table.columns]
    rows = (ManifestRow._make(values) for values in zip(*columns, strict=True))
    return [row._replace(notes=tuple(row.notes or ())) for row in rows]


def merge(rows: Iterable[ManifestRow]) -> dict[tuple[int, int], ManifestRow]:
    """What counts of each picture: the newest good row, or the newest where none is good."""
    merged: dict[tuple[int, int], ManifestRow] = {}
    for row in rows:
        known = merged.get(row.picture)
        if known is None or _rank(row) > _rank(known):
            merged[row.picture] = row
    return merged


def _rank(row: ManifestRow) -> tuple[bool, int]:
    return row.error is None, row.generation
