"""What a sink of shards leaves open: how the pictures of a task become one object."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from farm.errors import InvalidInput
from farm.formats.manifest import ManifestRow
from farm.formats.picture_file import Facts
from farm.job import Format
from farm.sinks.protocol import RowId


class Packed(NamedTuple):
    """An object, and where in it each row's content begins."""

    data: bytes
    offsets: list[int]


class Unpacked(NamedTuple):
    """One picture of an object."""

    picture: RowId
    offset: int
    content: bytes
    facts: Facts


def check_content(content: bytes, sha256: str) -> None:
    """Raises ``ValueError`` if these are not the bytes that were packed."""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError("the shard is damaged")


@contextlib.contextmanager
def refuse_damage() -> Iterator[None]:
    """Raise ``ValueError`` for whatever trips over a damaged object's values."""
    try:
        yield
    except (InvalidInput, LookupError, TypeError, AttributeError) as error:
        raise ValueError("the shard is damaged") from error


class Layout(Protocol):
    """The same rows and contents give the same bytes: no clock, no user, no job."""

    suffix: str  # of an object's key
    content_type: str
    tokens_alone: bool  # whether a picture's tokens are all that is kept of it, and not its file

    def file_name(self, render: int, image: int, picture_format: Format) -> str:
        """Of one picture, once it is taken out of its shard."""
        ...

    def pack(self, rows: Sequence[ManifestRow], contents: Sequence[bytes]) -> Packed:
        """One object from at least one row, in the order given.

        Args:
            rows: of stored pictures, each with ``file`` set to the picture's own name.
            contents: of each the picture file, or the tokens where they are all that is kept. Each
                lies in the object in one piece.
        """
        ...

    def unpack(self, data: bytes) -> Iterator[Unpacked]:
        """What ``pack`` put in.

        Raises:
            ValueError: the object is damaged.
        """
        ...
