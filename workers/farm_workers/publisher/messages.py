"""What a worker and its publisher process say to each other."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from farm.formats.manifest import ManifestRow
from farm.formats.picture_record import PictureRecord
from farm.formats.token_pictures import TokenPictures
from farm.job import Receipt
from farm.sinks.protocol import TaskPlace


class Begin(NamedTuple):
    """The first message; everything that the process must be told."""

    store: str
    scratch: Path  # for what the sinks hold back
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
    """The last message of a task; what its sink holds back can go."""

    task: int
    place: TaskPlace | None  # None if it was never loaded


class TellEarly(NamedTuple):
    """Let readers see these pictures before their task ends; there is no answer to it."""

    task: int
    place: TaskPlace
    attempt: int
    rows: tuple[ManifestRow, ...]


class StorePicture(NamedTuple):
    """A message with the pixels' bytes follows, unless ``shape`` is None."""

    number: int
    task: int
    place: TaskPlace
    record: PictureRecord
    shape: tuple[int, ...] | None
    tokens: bytes  # uint16, row by row
    token_shape: tuple[int, ...]

    @property
    def subject(self) -> str:
        """What it is about, for messages."""
        return self.place.data + self.record.file_name


class StoreTask(NamedTuple):
    """All pictures of the task were taken or have failed."""

    number: int
    task: int
    place: TaskPlace
    rows: tuple[ManifestRow, ...]
    tokens: TokenPictures | None  # the pictures that have no row yet

    @property
    def subject(self) -> str:
        return str(self.place.part)

    @property
    def pictures(self) -> int:
        return len(self.rows) + len(self.tokens or ())

    def all_rows(self) -> Sequence[ManifestRow]:
        made = self.tokens.rows(self.place.generation) if self.tokens else ()
        return [*self.rows, *made] if self.rows else made


class StoreSuccess(NamedTuple):
    number: int
    task: int
    job: str
    key: str
    document: bytes

    @property
    def subject(self) -> str:
        return self.key


class Stored(NamedTuple):
    """The answer to ``StorePicture``, ``StoreTask`` or ``StoreSuccess`` of that number."""

    number: int
    result: ManifestRow | Receipt
    encode_seconds: float = 0.0  # of a picture
    upload_seconds: float = 0.0  # of it, with all attempts


class NotStored(NamedTuple):
    number: int
    error: dict[str, object]  # of ``FarmError.to_dict``


Work = StorePicture | StoreTask | StoreSuccess
Notice = LeaseUntil | Drop | TellEarly
Message = Work | Notice
