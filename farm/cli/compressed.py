"""Compressed files, known by their first bytes, and files with the line ends of old Macs."""

import bz2
import gzip
import io
import lzma
import zlib
from typing import Any

from farm.errors import InvalidInput

SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
BUFFER = 64 * 1024
_ZSTD = b"\x28\xb5\x2f\xfd"


def decompressed(file: io.BufferedReader, name: str) -> io.BufferedReader:
    """The file's content, read as a stream; a file that is not compressed comes back itself.

    Reading raises ``InvalidInput`` where the compressed data are damaged.
    """
    start = file.peek(6)[:6]
    inner: Any
    if start.startswith(b"\x1f\x8b"):
        inner = gzip.GzipFile(fileobj=file)
    elif start.startswith(b"BZh"):
        inner = bz2.BZ2File(file)
    elif start == b"\xfd7zXZ\x00":
        inner = lzma.LZMAFile(file)  # noqa: SIM115  lives as long as its reader
    elif start.startswith(_ZSTD):
        inner = _zstd(file, name)
    else:
        return file
    return io.BufferedReader(_Guarded(inner, name), BUFFER)


def with_newlines(file: io.BufferedReader) -> io.BufferedReader:
    """A file whose lines end in CR alone, with LF instead; others come back themselves."""
    start = file.peek(BUFFER)
    if b"\r" in start and b"\n" not in start:
        return io.BufferedReader(_Newlines(file), BUFFER)
    return file


def _zstd(file: io.BufferedReader, name: str) -> Any:
    try:
        import pyarrow as pa
    except ImportError:
        raise InvalidInput(
            f"{name}: zstd files need pyarrow",
            field="file",
            hint="pip install pyarrow, or unpack it with zstd -d",
        ) from None
    return pa.CompressedInputStream(file, "zstd")


class _Raw(io.RawIOBase):
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def readable(self) -> bool:
        return True


class _Guarded(_Raw):
    def __init__(self, inner: Any, name: str) -> None:
        super().__init__(inner)
        self._name = name

    def readinto(self, buffer: Any, /) -> int:
        try:
            return int(self._inner.readinto(buffer))
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise InvalidInput(
                f"{self._name} cannot be unpacked: {error}"[:200],
                field="file",
                hint="it may be cut off; fetch it once more",
            ) from None


class _Newlines(_Raw):
    def readinto(self, buffer: Any, /) -> int:
        part = self._inner.read1(len(buffer)).replace(b"\r", b"\n")
        buffer[: len(part)] = part
        return len(part)
