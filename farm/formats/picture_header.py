"""What a picture file says about itself before decoding: its format, a PNG's chunks, its size."""

import struct
import zlib
from typing import NamedTuple

MAX_PROFILE_BYTES = 4 * 2**20  # of a colour profile; real ones have up to 3 MB
MAX_PNG_CHUNKS = 2**16
ALLOWED = "PNG, JPEG, WebP, GIF, BMP and TIFF files with 8 or 16 bits"

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What a PNG's picture is made of; texts, profiles and animation are left out before decoding.
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")
_FORMATS = (
    (_PNG_SIGNATURE, "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
)
_OTHERS = (
    (b"%!PS", "an EPS file"),
    (b"\xc5\xd0\xd3\xc6", "an EPS file"),
    (b"%PDF", "a PDF file"),
    (b"8BPS", "a Photoshop file"),
    (b"SIMPLE  =", "a FITS file"),
    (b"\0\0\1\0", "an ICO file"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL file"),
    (b"\xff\x0a", "a JPEG XL file"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 file"),
    (b"qoif", "a QOI file"),
    (b"PK\3\4", "a ZIP file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"gimp xcf", "a GIMP file"),
)


class Unreadable(Exception):
    """A file that is not a whole picture of a format the farm reads."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Png(NamedTuple):
    """A PNG file whose chunks are whole; ``data`` holds only what the picture is made of."""

    data: bytes
    width: int
    height: int
    bits: int  # per channel
    profile: bytes | None  # at most a byte more than ``MAX_PROFILE_BYTES`` of it
    frames: int


def format_of(data: bytes) -> str:
    """The format, by Pillow's name for it; raises ``Unreadable`` with what the file is instead."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    for start, name in _FORMATS:
        if data.startswith(start):
            return name
    if not data:
        raise Unreadable("is empty")
    raise Unreadable(f"is {_describe(data[:64])}, not a picture the farm reads", f"send {ALLOWED}")


def read_png(data: bytes) -> Png:
    """Check every chunk: Pillow itself leaves the checksums of pixel data unread."""
    kept: list[bytes | memoryview] = [_PNG_SIGNATURE]
    width = height = bits = 0
    profile: bytes | None = None
    frames, chunks = 1, 0
    view = memoryview(data)
    offset, name = 8, b""
    while name != b"IEND":
        chunks += 1
        if chunks > MAX_PNG_CHUNKS:
            raise Unreadable(f"has more than {MAX_PNG_CHUNKS:,} chunks", "save it again")
        name, body = _read_chunk(data, view, offset)
        if (offset == 8) != (name == b"IHDR") or (name == b"IHDR" and len(body) != 13):
            raise Unreadable("is a damaged PNG file: no proper header")
        if name == b"IHDR":
            width, height, bits = struct.unpack_from(">IIB", body)
        elif name == b"iCCP":
            if profile is not None:
                raise Unreadable("is a damaged PNG file: it has several colour profiles")
            profile = _inflate(body)
        elif name == b"acTL" and len(body) == 8:
            frames = int.from_bytes(body[:4], "big")
        end = offset + 12 + len(body)
        if name in _PNG_CHUNKS:
            kept.append(view[offset:end])
        offset = end
    return Png(b"".join(kept), width, height, bits, profile, frames)


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height by the header: Pillow sets aside the canvas when it opens the file."""
    head = data[12:30].ljust(18, b"\0")
    if head.startswith(b"VP8X"):
        return (
            int.from_bytes(head[12:15], "little") + 1,
            int.from_bytes(head[15:18], "little") + 1,
        )
    if head.startswith(b"VP8L"):
        bits = int.from_bytes(head[9:13], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return (
        int.from_bytes(head[14:16], "little") & 0x3FFF,
        int.from_bytes(head[16:18], "little") & 0x3FFF,
    )


def _read_chunk(data: bytes, view: memoryview, offset: int) -> tuple[bytes, memoryview]:
    """The name and the body of the chunk that starts at ``offset``."""
    if offset + 12 > len(data):
        raise Unreadable("is a PNG file that ends too early", "send the whole file")
    (length,) = struct.unpack_from(">I", data, offset)
    name = data[offset + 4 : offset + 8]
    end = offset + 12 + length
    if end > len(data):
        raise Unreadable("is a PNG file that ends too early", "send the whole file")
    if zlib.crc32(view[offset + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
        raise Unreadable(
            f"is a damaged PNG file: wrong checksum in chunk {name!r:.10}",
            "open it and save it again",
        )
    return name, view[offset + 8 : end - 4]


def _inflate(body: memoryview) -> bytes:
    """A PNG's colour profile, as far as it is of interest; empty if it cannot be read."""
    chunk = bytes(body)
    if len(chunk) >= MAX_PROFILE_BYTES:
        return chunk
    packed = chunk[chunk.find(b"\0") + 2 :]
    try:
        return zlib.decompressobj().decompress(packed, MAX_PROFILE_BYTES + 1)
    except zlib.error:
        return b""


def _describe(head: bytes) -> str:
    for start, name in _OTHERS:
        if head.startswith(start):
            return name
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        return "an AVIF file" if brand in (b"avif", b"avis") else "a HEIC or video file"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if text.startswith((b"<svg", b"<?xml", b"<!doctype svg")):
        return "an SVG or XML file"
    if text.startswith((b"{", b"[", b"data:", b"http://", b"https://")):
        return "text"
    return "a file of unknown format"
