"""Small picture files that unfold to gigabytes or minutes, and what becomes of each."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from PIL import Image

SIDE = 8192
HALF = 4096


class Bomb(NamedTuple):
    make: Callable[[], bytes]
    refused: bool  # otherwise it is a picture within the limits, if a costly one


def _save(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _zipped_zeros(zeros: bytes, times: int) -> bytes:
    """Packed once: a full flush forgets what came before, so its bytes may come again."""
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    block = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = len(zeros) * times % 65521 << 16 | 1  # Adler-32 of zeros
    return b"\x78\xda" + block * times + packer.flush() + struct.pack(">I", checksum)


def _png(width: int, height: int, depth: int, colour: int, *extra: bytes) -> bytes:
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    lines = bytes(1 + (width * channels * depth + 7) // 8) * 64
    packed = _zipped_zeros(lines, height // 64)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", header), *extra, _chunk(b"IDAT", packed),
            _chunk(b"IEND", b""),
        ]
    )  # fmt: skip


def _profile(size: int) -> bytes:
    return _chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(size), 9))


def _progressive(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = _save(Image.new("RGB", (side, side), (200, 30, 60)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    scan = data[last:-2]
    return data[:last] + scan * (scans - data.count(b"\xff\xda") + 1) + data[-2:]


def _tiff(compression: str, side: int) -> bytes:
    return _save(Image.new("L", (side, HALF)), "TIFF", compression=compression)


def _tiff_loop() -> bytes:
    """Ten thousand directories, one after the other."""
    data = bytearray(b"II*\0\x08\0\0\0")
    for number in range(10_000):
        tags = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 64}
        data += struct.pack("<H", len(tags))
        data += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
        data += struct.pack("<I", len(data) + 4 if number < 9_999 else 0)
    return bytes(data)


def _frames(kind: str, side: int, frames: int) -> bytes:
    first = Image.new("P" if kind == "GIF" else "RGB", (side, side))
    others = [Image.new(first.mode, (side, side), number % 250 + 1) for number in range(1, frames)]
    return _save(first, kind, save_all=True, append_images=others)


def _gif(side: int, frames: int) -> bytes:
    """The second frame again and again, which does not say where it stands."""
    one, two = _frames("GIF", side, 1), _frames("GIF", side, 2)
    second = two[len(one) - 1 : -1]
    return two[:-1] + second * (frames - 2) + two[-1:]


def _webp(mode: str, side: int) -> bytes:
    """Of one colour, whose pixels take no bits: only the 14 bits of each side are to be changed."""
    data = bytearray(_save(Image.new(mode, (8, 8)), "WEBP", lossless=True, method=0))
    at = data.index(b"\x2f") + 1
    [bits] = struct.unpack_from("<I", data, at)
    struct.pack_into("<I", data, at, bits >> 28 << 28 | side - 1 << 14 | side - 1)
    return bytes(data)


BOMBS: Mapping[str, Bomb] = {
    "webp of 8192 x 8192": Bomb(lambda: _webp("RGB", SIDE), True),
    "webp of 4096 x 4096": Bomb(lambda: _webp("RGBA", HALF), False),
    "16-bit grey with a transparent value": Bomb(
        lambda: _png(SIDE, HALF, 16, 0, _chunk(b"tRNS", b"\0\0")), False
    ),
    "16-bit colour": Bomb(lambda: _png(SIDE, HALF, 16, 2), False),
    "rgba of 8192 x 8192": Bomb(lambda: _png(SIDE, SIDE, 8, 6), True),
    "rgba of 8192 x 4096": Bomb(lambda: _png(SIDE, HALF, 8, 6), False),
    "palette with transparency": Bomb(
        lambda: _png(SIDE, HALF, 1, 3, _chunk(b"PLTE", bytes(6)), _chunk(b"tRNS", b"\0")), False
    ),
    "1-bit of 12000 x 12032": Bomb(lambda: _png(12_000, 12_032, 1, 0), True),
    "a hundred colour profiles": Bomb(
        lambda: _png(64, 64, 8, 2, *[_profile(4 * 2**20)] * 100), True
    ),
    "a profile of 60 MB": Bomb(lambda: _png(64, 64, 8, 2, _profile(60 * 2**20)), True),
    "a million chunks": Bomb(
        lambda: _png(64, 64, 8, 2, *[_chunk(b"tEXt", b"a\0")] * 1_000_000), True
    ),
    "zipped texts": Bomb(
        lambda: _png(
            64, 64, 8, 2, *[_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**24), 9))] * 100
        ),
        False,
    ),
    "jpeg of 199 scans": Bomb(lambda: _progressive(4096, 199), True),
    "jpeg of 90 scans": Bomb(lambda: _progressive(4096, 90), True),
    "jpeg with as many scans as are allowed": Bomb(lambda: _progressive(SIDE, 16), False),
    "jpeg of 65500 x 65500": Bomb(
        lambda: _save(Image.new("L", (64, 64)), "JPEG").replace(
            b"\x08\0\x40\0\x40", b"\x08\xff\xdc\xff\xdc", 1
        ),
        True,
    ),
    "gif of 65535 x 65535": Bomb(
        lambda: b"GIF89a\xff\xff\xff\xff" + _frames("GIF", 8, 1)[10:], True
    ),
    "gif of 500 frames": Bomb(lambda: _gif(1024, 500), False),
    "webp of 200 frames": Bomb(lambda: _frames("WEBP", 256, 200), False),
    "deflated tiff": Bomb(lambda: _tiff("tiff_adobe_deflate", SIDE), False),
    "lzw tiff": Bomb(lambda: _tiff("tiff_lzw", SIDE), False),
    "tiff of ten thousand directories": Bomb(_tiff_loop, False),
}


def bombs() -> Iterator[tuple[str, bytes, bool]]:
    for name, bomb in BOMBS.items():
        yield name, bomb.make(), bomb.refused
