"""One range of an object's bytes, as RFC 9110 section 14 has it."""

import re
from collections.abc import Iterator

from farm.errors import InvalidInput
from farm.store import Store
from farm.store.protocol import STREAM_BYTES

_ONE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*")


class BadRange(InvalidInput):
    """The range begins behind the object's end."""

    status = 416


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The first byte of the range and the one after its last; None for the whole object.

    A header that cannot be read, or asks for several ranges, is ignored, as the standard allows.

    Raises:
        BadRange: no byte of the range is there.
    """
    found = _ONE.fullmatch(header or "")
    if found is None or found[1] == found[2] == "":
        return None
    if not found[1]:
        first, after = max(size - int(found[2]), 0), size
    else:
        first, after = int(found[1]), min(int(found[2]) + 1 if found[2] else size, size)
        if found[2] and int(found[2]) < first:
            return None
    if first >= after:
        raise BadRange(f"the object has {size:,} bytes", field="Range")
    return first, after


def read_pieces(store: Store, key: str, offset: int, size: int) -> Iterator[bytes]:
    """A part of an object, read as it is sent."""
    for start in range(offset, offset + size, STREAM_BYTES):
        yield store.read(key, start, min(STREAM_BYTES, offset + size - start))
