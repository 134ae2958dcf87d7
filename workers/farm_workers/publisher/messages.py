"""What a worker and its publisher process say to each other."""

from typing import NamedTuple

from farm.formats.manifest import ManifestRow
from farm.job import Receipt
from farm_workers.publisher.record import PictureRecord


class Begin(NamedTuple):
    """The first message; everything that the process must be told."""

    store: str
    threads: int
    patience_seconds: float


class Ready(NamedTuple):
    """The process's first message: it takes work from here on."""


class Alive(NamedTuple):
    """Said once a second."""


class LeaseUntil(NamedTuple):
    """Nothing of the task is written after ``deadline``, on the machine's monotonic clock."""

    task: int
    deadline: float


class Drop(NamedTuple):
    task: int


class StorePicture(NamedTuple):
    """A message with the pixels' bytes follows, unless ``shape`` is None."""

    number: int
    task: int
    key: str
    record: PictureRecord
    shape: tuple[int, ...] | None
    tokens: bytes  # uint16, row by row
    token_shape: tuple[int, ...]


class StorePart(NamedTuple):
    number: int
    task: int
    key: str
    rows: tuple[ManifestRow, ...]


class StoreSuccess(NamedTuple):
    number: int
    task: int
    key: str
    document: bytes


class Stored(NamedTuple):
    """The answer to ``StorePicture``, ``StorePart`` or ``StoreSuccess`` of that number."""

    number: int
    result: ManifestRow | Receipt


class NotStored(NamedTuple):
    number: int
    error: dict[str, object]  # of ``FarmError.to_dict``


Work = StorePicture | StorePart | StoreSuccess
Message = Work | LeaseUntil | Drop
