"""What every store can do, and which keys it takes."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from farm.errors import InvalidInput, StoreError

MAX_KEY = 512  # characters; with the folder or prefix in front still below S3's 1,024
STREAM_BYTES = 1 << 20

_SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}"
_KEY = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
_PREFIX = re.compile(rf"(?:{_SEGMENT}/)*(?:{_SEGMENT})?")


class ListedObject(NamedTuple):
    key: str
    size: int  # bytes


class Store(Protocol):
    """Objects by key, each written once.

    A call that the store refuses or fails raises ``StoreError``; a key that is not there,
    ``NotFound``. All methods may be called from several threads at once.
    """

    url: str

    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> bool:
        """Write an object unless the key is taken; the stored bytes are complete or absent.

        Returns False, and leaves what is there, if the key was taken. After a lost connection
        that may be this very call's own object, so compare it before taking it for someone else's.
        """
        ...

    def get(self, key: str) -> bytes: ...

    def read(self, key: str, offset: int, size: int) -> bytes:
        """Bytes ``offset`` to ``offset + size``, 1 at least; an object that ends before is a
        ``StoreError``."""
        ...

    def stream(self, key: str) -> Iterator[bytes]:
        """The object in pieces of at most ``STREAM_BYTES``."""
        ...

    def size(self, key: str) -> int | None:
        """Bytes of the object; None when there is none."""
        ...

    def list(self, prefix: str) -> Iterator[ListedObject]:
        """Every object whose key starts with the prefix, in the order of the keys' bytes."""
        ...

    def folders(self, prefix: str) -> Iterator[str]:
        """What keys that start with the prefix have up to the next slash, each once and with the
        slash, in the order of their bytes. What lies below is not looked at: in a folder's store
        it may be nothing.

        Args:
            prefix: empty, or ends in a slash.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove the object, if there is one."""
        ...

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove the objects that there are, with as few requests as the store needs; when it
        fails, some of them may be gone."""
        ...

    def prune(self, prefix: str) -> None:
        """Remove the empty folders of a folder's store below a prefix that ends in a slash, where
        nothing is written any more."""
        ...

    def signed_url(self, key: str, *, seconds: int, filename: str | None = None) -> str | None:
        """A link that reads the object without credentials; None where the store has none."""
        ...


def check_key(key: str) -> str:
    """The key itself, if it is one; no key can name anything outside the store."""
    if len(key) > MAX_KEY or not _KEY.fullmatch(key):
        raise InvalidInput(f"{key[:80]!r} is not a key of the store", field="key")
    return key


def whole_range(data: bytes, key: str, size: int) -> bytes:
    """What was read of an object, if that is as much as was asked for."""
    if len(data) != size:
        raise StoreError(f"{key} ends too early: it was changed", hint="farm verify finds it")
    return data


def check_prefix(prefix: str) -> str:
    if len(prefix) > MAX_KEY or not _PREFIX.fullmatch(prefix):
        raise InvalidInput(f"{prefix[:80]!r} is not the start of a key", field="prefix")
    return prefix
