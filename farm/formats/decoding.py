"""Pictures that users send: recognised by their content, checked, and decoded to plain RGB."""

import io
import warnings
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from farm.errors import InvalidInput, TooLarge
from farm.formats.picture_header import (
    MAX_PROFILE_BYTES,
    Unreadable,
    format_of,
    read_png,
    webp_size,
)

MAX_PICTURE_BYTES = 100 * 2**20
MAX_PIXELS = 2**25  # 8192 x 4096; four bytes each in memory, and a copy of some of them
MAX_JPEG_PIXELS = 2**26  # 8192 x 8192; a 61-megapixel camera's pictures fit
MAX_WEBP_PIXELS = 2**24  # 4096 x 4096; its decoder holds four copies of them
_MOST_PIXELS = {"JPEG": MAX_JPEG_PIXELS, "WEBP": MAX_WEBP_PIXELS}
MAX_JPEG_SCANS = 100  # each goes over all pixels again; real progressive files have about ten
MAX_SCANNED_PIXELS = 2**30  # of all scans of a JPEG: sixteen of the largest picture, 3 s
MASK_THRESHOLD = 128  # of 255: from here on a pixel is repainted, as diffusers rounds it

InputKind = Literal["image", "mask"]

_FIELDS: dict[InputKind, str] = {"image": "image", "mask": "mask_image"}
_JPEG_SCAN = b"\xff\xda"
_MODES_16 = ("I;16", "I;16L", "I;16B", "I;16N")
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
_EXIF_ORIENTATION = 0x0112
_TIFF_BITS, _TIFF_TILE_SIDES, _TIFF_INTERPRETATION = 258, (322, 323), 262
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns of damage that it can live with, and of sizes at a limit above the farm's.
warnings.filterwarnings("ignore", module="PIL")


class Picture(NamedTuple):
    """What ``probe`` found; ``notes`` say what the farm makes of it."""

    width: int
    height: int
    notes: tuple[str, ...]


class Decoded(NamedTuple):
    pixels: NDArray[np.uint8]
    notes: tuple[str, ...]


def probe(data: bytes, kind: InputKind) -> Picture:
    """Check that the bytes are a picture that can be read to its end; raises ``InvalidInput``."""
    reader = _Reader(kind, quick=True)
    reader.read(data)
    return Picture(reader.width, reader.height, tuple(reader.notes))


def read_image(data: bytes, size: tuple[int, int]) -> Decoded:
    """The picture as RGB, uint8 (height, width, 3), scaled to ``size`` (height, width)."""
    reader = _Reader("image")
    image = reader.resize(reader.read(data), size)
    return Decoded(np.asarray(image), tuple(reader.notes))


def read_mask(data: bytes, size: tuple[int, int]) -> Decoded:
    """The mask, uint8 (height, width): 255 is repainted, 0 is kept.

    Its luminance decides, whatever its mode; where it is transparent, nothing was painted on it,
    so that is kept.
    """
    reader = _Reader("mask")
    image = reader.resize(reader.read(data), size)
    pixels = np.where(np.asarray(image) >= MASK_THRESHOLD, np.uint8(255), np.uint8(0))
    return Decoded(pixels, tuple(reader.notes))


class _Reader:
    """One picture on its way from bytes to plain RGB, or luminance for a mask."""

    def __init__(self, kind: InputKind, *, quick: bool = False) -> None:
        self.kind = kind
        self.quick = quick  # to probe only: the pixels are not converted
        self.width = self.height = 0
        self.most = MAX_PIXELS
        self.deep = False  # it has 16 bits per channel
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(f"{self.kind}: {text}")

    def refuse(self, message: str, hint: str | None = None) -> InvalidInput:
        return InvalidInput(message, field=_FIELDS[self.kind], hint=hint)

    def read(self, data: bytes) -> Image.Image:
        if len(data) > MAX_PICTURE_BYTES:
            raise TooLarge(
                f"has {len(data):,} bytes; at most {MAX_PICTURE_BYTES:,} are allowed",
                field=_FIELDS[self.kind],
            )
        try:
            form, data = self._check_content(data)
        except Unreadable as error:
            raise self.refuse(error.message, error.hint) from None
        scans = data.count(_JPEG_SCAN) if form == "JPEG" else 0
        if scans > MAX_JPEG_SCANS:
            raise self.refuse(f"has more than {MAX_JPEG_SCANS} scans", "open it and save it again")
        try:
            with Image.open(io.BytesIO(data), formats=[form]) as image:
                self._check_header(image, form)
                if scans * image.width * image.height > MAX_SCANNED_PIXELS:
                    raise self.refuse(
                        f"has {scans} scans of {image.width:,} x {image.height:,} pixels",
                        "save it as a baseline JPEG, which has one",
                    )
                self._check_animation(image)
                if self.quick and form == "JPEG":
                    image.draft(None, (image.width // 8 or 1, image.height // 8 or 1))
                image.load()
                return self._turn(image, self._plain(image))
        except InvalidInput:
            raise
        except Image.DecompressionBombError:
            raise self._too_large() from None
        except MemoryError:
            raise TooLarge(
                "takes too much memory to decode",
                field=_FIELDS[self.kind],
                hint="scale it down; a render has at most 4096 x 4096",
            ) from None
        except Exception as error:  # a damaged file leads Pillow to almost any of them
            raise self.refuse(
                f"is a damaged {form} file: {str(error) or type(error).__name__}",
                "open it and save it again",
            ) from error

    def _check_content(self, data: bytes) -> tuple[str, bytes]:
        """The format, and what of the file Pillow shall see."""
        form = format_of(data)
        self.most = _MOST_PIXELS.get(form, MAX_PIXELS)
        if form == "PNG":
            data = self._check_png(data)
        elif form == "WEBP":
            self._check_size(*webp_size(data))
        return form, data

    def resize(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        height, width = size
        if image.size == (width, height):
            return image
        text = f"scaled from {image.width} x {image.height} to {width} x {height}"
        across, down = image.width * height, image.height * width
        if abs(across - down) > min(across, down) / 100:
            text += ", which changes its proportions"
        self.note(text)
        return image.resize((width, height), Image.Resampling.LANCZOS)

    def _check_size(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        if width < 1 or height < 1:
            raise self.refuse(f"has {width} x {height} pixels")
        if width * height > self.most:
            raise self._too_large()

    def _too_large(self) -> TooLarge:
        size = f"{self.width:,} x {self.height:,}" if self.width else "too many"
        return TooLarge(
            f"has {size} pixels; at most {self.most:,} in all are allowed",
            field=_FIELDS[self.kind],
            hint="scale it down first; a render has at most 4096 x 4096",
        )

    def _check_header(self, image: Image.Image, form: str) -> None:
        self._check_size(*image.size)
        if form == "TIFF":
            self._check_tiff(image)
        if image.mode not in (*_MODES, *_MODES_16):
            kinds = {"F": "floating point numbers", "I": "whole numbers of 32 bits"}
            raise self.refuse(
                f"its pixels are {kinds.get(image.mode, f'in the colour mode {image.mode}')}",
                "save it as 8-bit or 16-bit RGB or grey",
            )
        profile = image.info.get("icc_profile")
        if profile:
            self._check_profile(profile)

    def _check_tiff(self, image: Image.Image) -> None:
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        bits = tags.get(_TIFF_BITS, (1,))
        self.deep = 16 in bits
        if any(bit not in (1, 2, 4, 8, 16) for bit in bits):
            raise self.refuse(f"has {bits[0]} bits per channel", "save it with 8 or 16 bits")
        sides = [tags.get(tag, 1) for tag in _TIFF_TILE_SIDES]
        if sides[0] * sides[1] > MAX_PIXELS:
            raise self._too_large()

    def _check_profile(self, profile: bytes | memoryview) -> None:
        if len(profile) > MAX_PROFILE_BYTES:
            raise TooLarge(
                f"its colour profile has more than {MAX_PROFILE_BYTES:,} bytes",
                field=_FIELDS[self.kind],
                hint="save it as sRGB, without a profile",
            )
        if self.kind == "image" and not any(
            name in bytes(profile) for name in (b"sRGB", "sRGB".encode("utf-16-be"))
        ):
            self.note("its colour profile was not applied; it was read as sRGB")

    def _check_animation(self, image: Image.Image) -> None:
        if image.format != "MPO" and getattr(image, "is_animated", False):
            self.note("has several frames; the first one was taken")

    def _check_png(self, data: bytes) -> bytes:
        png = read_png(data)
        self._check_size(png.width, png.height)
        self.deep = png.bits == 16
        if png.profile is not None:
            self._check_profile(png.profile)
        if png.frames > 1:
            self.note("has several frames; the first one was taken")
        return png.data

    def _turn(self, source: Image.Image, image: Image.Image) -> Image.Image:
        """Bring the picture upright; ``source`` still knows how the camera was held."""
        try:
            turn = _TURNS.get(source.getexif().get(_EXIF_ORIENTATION, 1))
        except Exception:  # EXIF data that cannot be read say nothing
            turn = None
        if turn is None:
            return image
        if turn not in _UPRIGHT:
            self.width, self.height = self.height, self.width
        return image.transpose(turn)

    def _plain(self, image: Image.Image) -> Image.Image:
        """RGB, or luminance for a mask, with transparency laid on a ground."""
        mode = image.mode
        if self.deep:
            self.note("was converted from 16 to 8 bits")
        if mode in _MODES_16:
            if self.quick and self.kind == "image":
                key = image.info.get("transparency")
                if isinstance(key, int):
                    alpha = np.asarray(image) != key
                    self._note_transparency(bool(alpha.all()), bool(alpha.any()))
                return image
            image = self._scale(image)
        if mode == "CMYK":
            self.note("was converted from CMYK")
        if mode == "La":  # grey times its alpha, of which Pillow makes nothing but this
            image = image.convert("LA")
        if image.has_transparency_data:
            image = self._lay(image if image.mode == "RGBA" else image.convert("RGBA"))
        if self.kind == "image":
            return image if self.quick or image.mode == "RGB" else image.convert("RGB")
        plain = image.convert("L")
        greys = plain.histogram()
        if mode not in ("1", "L") or any(greys[1:255]):
            self.note(
                f"its luminance decides: {MASK_THRESHOLD} to 255 is repainted, "
                f"0 to {MASK_THRESHOLD - 1} is kept"
            )
        if not any(greys[MASK_THRESHOLD:]):
            self.note("it marks nothing to repaint")
        return plain

    def _scale(self, image: Image.Image) -> Image.Image:
        """16 bits to 8 by dropping the low ones, which is what Pillow does to 16-bit colours."""
        values = np.asarray(image)
        key = image.info.get("transparency")
        scaled = (values >> 8).astype(np.uint8)
        if getattr(image, "tag_v2", {}).get(_TIFF_INTERPRETATION) == 0:  # white is zero
            scaled = 255 - scaled
        if isinstance(key, int):
            alpha = np.where(values == key, np.uint8(0), np.uint8(255))
            return Image.fromarray(np.stack([scaled, alpha], axis=-1), "LA")
        return Image.fromarray(scaled)

    def _note_transparency(self, opaque: bool, visible: bool) -> bool:
        """Note what is done about transparent parts; returns whether there are none."""
        if not opaque:
            ground = "white" if self.kind == "image" else "black, which is kept"
            what = "has transparent parts; it" if visible else "is fully transparent; it"
            self.note(f"{what} was laid on {ground}")
        return opaque

    def _lay(self, image: Image.Image) -> Image.Image:
        alpha = image.getchannel("A")
        least, most = alpha.getextrema()
        white = self.kind == "image"
        if self._note_transparency(least == 255, most != 0):
            return image
        if white and self.quick:
            return image
        laid = Image.new("RGB", image.size, (255, 255, 255) if white else (0, 0, 0))
        laid.paste(image, mask=alpha)
        return laid


_UPRIGHT = (
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_180,
)
