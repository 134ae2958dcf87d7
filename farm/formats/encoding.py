"""Pixels and tokens to the bytes of a picture file, with the farm's facts and mark of origin."""

import io

import fpng
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from PIL import Image

from farm.formats.origin import PNG_KEYWORD, XMP, png_chunk
from farm.formats.picture_file import EXIF_ASCII, EXIF_IFD, EXIF_USER_COMMENT, KEYWORD, Facts
from farm.job import Format

JPEG_QUALITY = 95
JPEG_EXIF_BYTES = 65_533  # that a JPEG has room for
WEBP_EFFORT = 0  # of 6 and 100: more takes several times as long for a few per cent
PNG_HEAD_BYTES = 33  # signature and IHDR chunk; text right after them is read first


def encode(pixels: NDArray[np.uint8] | None, facts: Facts, file_format: Format) -> bytes:
    """The file's bytes; the same arguments give the same bytes.

    Args:
        pixels: (height, width, 3); None for ``Format.TOKENS``, which stores no pixels.
    """
    if file_format is Format.TOKENS:
        return _tokens(facts)
    if pixels is None:
        raise ValueError(f"{file_format} needs pixels")
    pixels = np.ascontiguousarray(pixels, dtype=np.uint8)
    if file_format is Format.PNG:
        return _png(pixels, facts)
    out = io.BytesIO()
    picture = Image.fromarray(pixels)
    if file_format is Format.WEBP:
        effort = {"quality": WEBP_EFFORT, "method": WEBP_EFFORT}
        picture.save(out, "WEBP", lossless=True, exif=_exif(facts), xmp=XMP, **effort)
    else:
        exif = _exif(facts)
        if len(exif) > JPEG_EXIF_BYTES:  # notes that repeat a long prompt
            exif = _exif(facts._replace(notes=()))
        picture.save(out, "JPEG", quality=JPEG_QUALITY, exif=exif, xmp=XMP)
    return out.getvalue()


def _png(pixels: NDArray[np.uint8], facts: Facts) -> bytes:
    data = bytes(fpng.from_ndarray(pixels))
    texts = png_chunk(KEYWORD.encode(), facts.to_json().encode()) + png_chunk(PNG_KEYWORD, XMP)
    return data[:PNG_HEAD_BYTES] + texts + data[PNG_HEAD_BYTES:]


def _exif(facts: Facts) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[EXIF_USER_COMMENT] = EXIF_ASCII + facts.to_json().encode()
    return exif.tobytes()


def _tokens(facts: Facts) -> bytes:
    # One entry of metadata: with more, safetensors writes them in an order that varies.
    return safetensors.numpy.save(
        {"tokens": np.ascontiguousarray(facts.tokens, dtype=np.int32)},
        metadata={KEYWORD: facts.to_json(with_tokens=False)},
    )
