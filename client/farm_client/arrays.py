"""Arrays as input files: whatever offers the buffer protocol, such as numpy's, without numpy.

Pictures become PNG (ISO/IEC 15948), token ids a safetensors file.
"""

import json
import struct
import zlib

from farm.errors import InvalidInput

_COLOURS = {1: 0, 3: 2, 4: 6}  # samples of a pixel -> PNG's colour type
_WHOLE = frozenset("bBhHiIlLqQ")  # struct's letters of integers
_ORDERS = ("", "@", "=", "<", ">")  # of bytes; numpy says "=" where an array is not aligned
LATENTS = "latents"  # the parameter, and the tensor's name in its file


def is_array(value: object) -> bool:
    """Whether it is an array; bytes are a file."""
    return hasattr(value, "__array_interface__")


def file_of(value: object, field: str) -> bytes:
    """The file for an array.

    Args:
        value: of a picture uint8 (height, width), (height, width, 3) or (height, width, 4), of a
            mask also bool (height, width); of latents integers (rows, columns).

    Raises:
        InvalidInput: it has another shape or type.
    """
    try:
        view = memoryview(value)  # type: ignore[arg-type]  # asked for by its buffer
    except (TypeError, ValueError, BufferError) as error:
        raise InvalidInput(f"the array cannot be read: {error}", field=field) from None
    return _latents(view) if field == LATENTS else _png(view, field)


def _png(view: memoryview, field: str) -> bytes:
    shape = view.shape or ()
    samples = shape[2] if len(shape) == 3 else 1
    if len(shape) not in (2, 3) or samples not in _COLOURS or 0 in shape:
        raise InvalidInput(
            f"an array of shape {tuple(shape)} is not a picture",
            field=field,
            hint="give (height, width, 3), or (height, width) for a mask",
        )
    data = view.tobytes()
    if view.format == "?":
        data = bytes(255 * value for value in data)
    elif view.format != "B":
        raise InvalidInput(
            "an array of another type than uint8 is not a picture",
            field=field,
            hint='for numbers from 0 to 1: (array * 255).astype("uint8")',
        )
    height, width = shape[:2]
    row = width * samples
    lines = b"".join(b"\0" + data[at * row : (at + 1) * row] for at in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, _COLOURS[samples], 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(lines, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, body) for name, body in chunks)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _latents(view: memoryview) -> bytes:
    order, kind = (view.format or "")[:-1], (view.format or "")[-1:]
    if len(view.shape or ()) != 2 or order not in _ORDERS or kind not in _WHOLE:
        raise InvalidInput(
            "token ids are an array of whole numbers (rows, columns)",
            field=LATENTS,
            hint="the array of a file of the format tokens",
        )
    data = view.tobytes()
    ids = struct.unpack(f"{order}{len(data) // view.itemsize}{kind}", data)
    try:
        body = struct.pack(f"<{len(ids)}q", *ids)
    except struct.error:
        raise InvalidInput("a token id has more than 63 bits", field=LATENTS) from None
    tensor = {"dtype": "I64", "shape": list(view.shape or ()), "data_offsets": [0, len(body)]}
    head = json.dumps({LATENTS: tensor}).encode()
    return struct.pack("<Q", len(head)) + head + body
