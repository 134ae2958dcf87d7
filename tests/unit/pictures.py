"""Pictures to decode, for tests of images and of masks."""

import io
from typing import Any

import numpy as np
from PIL import Image

from farm.formats.decoding import Decoded, InputKind, read_image, read_mask

SIZE = (64, 96)  # height, width of what the tests ask for
RAMP = np.linspace(0, 255, 64 * 96).reshape(SIZE).astype(np.uint8)
RAMP_16 = np.linspace(0, 65535, 64 * 96).reshape(SIZE).astype(np.uint16)
GREY = Image.fromarray(RAMP)
COLOUR = Image.fromarray(np.stack([RAMP, RAMP[::-1], RAMP], axis=-1))


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def read(data: bytes, kind: InputKind = "image") -> Decoded:
    return (read_image if kind == "image" else read_mask)(data, SIZE)
