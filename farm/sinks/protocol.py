"""What a sink is: it decides which objects of the store hold the pictures of a task.

To add one, write a class like ``farm.sinks.images.Images`` and name it in the entry points of a
package, under ``farm.sinks.registry.GROUP``; nothing else of the farm has to know it.
"""

from collections.abc import Iterable, Sequence, Set
from typing import NamedTuple, Protocol, runtime_checkable

from farm.formats.manifest import ManifestRow
from farm.formats.picture_record import PictureRecord
from farm.job import Chunk, Format
from farm.store import keys

RowId = tuple[int, int]  # of the render in its job, of the picture in its render


class TaskPlace(NamedTuple):
    """Where the results of one generation of a task go."""

    sink: str  # its name in the registry
    job: str
    generation: int
    number: int  # of the task in its job
    format: Format  # of the pictures
    data: str  # start of the keys of its data; other tasks of the generation share it
    part: str | None  # key of its manifest part; None where the store keeps none

    @classmethod
    def of(cls, chunk: Chunk, generation: int) -> "TaskPlace":
        return cls(
            chunk.sink,
            chunk.job,
            generation,
            chunk.number,
            chunk.format,
            keys.data(chunk.job, generation),
            keys.part(chunk.job, generation, chunk.number),
        )

    @classmethod
    def local(cls, chunk: Chunk) -> "TaskPlace":
        """In a store that belongs to this job alone, as ``farm render`` has one."""
        return cls(chunk.sink, chunk.job, 0, chunk.number, chunk.format, data="", part=None)


class StoredObject(NamedTuple):
    """An object that a task must have in the store, and the rows whose pictures lie in it."""

    key: str
    size: int  # bytes
    sha256: str
    rows: tuple[ManifestRow, ...]

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]


class Source(NamedTuple):
    """The bytes of one picture file: a whole object, or a range of one."""

    key: str
    name: str  # of the picture file, for people
    size: int  # bytes of the picture file
    offset: int | None = None  # in the object; None where the object is the picture

    @property
    def shard(self) -> str | None:
        """Name of the object that holds other pictures too."""
        return None if self.offset is None else self.key.rpartition("/")[2]


@runtime_checkable
class Sink(Protocol):
    """Constructed with a ``Store`` and a folder for what waits to be stored.

    The folder is the worker's own. It survives the publisher's process and not the worker, need
    not exist yet, and is of use only to a sink that puts several pictures into one object.

    Everything is stored below ``place.data``, where a removed job's objects are deleted, and
    create-if-absent: what lies there already counts, whichever process wrote it, and goes into the
    rows. Calls about one place may be repeated at any
    time, by other workers too, and must come to the same rows. All methods may be called from
    several threads at once; they raise ``StoreError`` and ``NotFound`` as the store does.
    """

    # Whether a task is one object. Its size is then counted in pictures, so that the same renders
    # are always cut alike, and a picture can be read only when its task is whole.
    sharded: bool

    # Whether a picture's tokens are all that is kept of it, as in the sink ``tokens``. Its row then
    # comes to ``store_task`` with them and without a ``file``, and ``store_picture`` is not called.
    tokens_alone: bool

    def store_picture(self, place: TaskPlace, record: PictureRecord, data: bytes) -> ManifestRow:
        """Take a picture file and give its row, which ``store_task`` may still change.

        Returns once the picture survives the death of this process.

        Raises:
            Conflict: something else lies in the picture's place.
        """
        ...

    def store_task(self, place: TaskPlace, rows: Sequence[ManifestRow]) -> Sequence[ManifestRow]:
        """Store what is not stored yet, with every picture of the task known.

        Args:
            rows: of all the task's pictures in any order, failed ones included.

        Returns:
            The rows as the manifest part keeps them.
        """
        ...

    def forget(self, place: TaskPlace) -> None:
        """The task has left this worker, stored or not; what waits in the folder can go."""
        ...

    def stored_pictures(
        self, place: TaskPlace, chunk: Chunk, wanted: Set[RowId]
    ) -> list[ManifestRow]:
        """The wanted pictures that lie in the store, told by the stored objects alone.

        A later attempt does not render them again, and ``farm verify`` writes a lost manifest part
        again from them. What is damaged or belongs to another render is left out.
        """
        ...

    def objects(self, rows: Iterable[ManifestRow]) -> Iterable[StoredObject]:
        """The objects that hold these rows' pictures, each once; failed rows have none."""
        ...

    def source(self, row: ManifestRow) -> Source:
        """Where a picture that did not fail can be read."""
        ...
