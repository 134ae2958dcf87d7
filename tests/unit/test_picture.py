"""Pictures as people send them."""

import io
import random
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from pictures import COLOUR, GREY, RAMP, RAMP_16, SIZE, read, save
from PIL import Image

from farm.errors import FarmError, InvalidInput, TooLarge
from farm.formats.decoding import MAX_PICTURE_BYTES, InputKind, probe, read_image, read_mask

# Pillow's own warnings; farm.formats.decoding silences them, but pytest listens again.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, colour: int, lines: bytes, *extra: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *extra,
            chunk(b"IDAT", zlib.compress(lines)),
            chunk(b"IEND", b""),
        ]
    )


def tiff(tags: dict[int, int]) -> bytes:
    """One of 8-bit grey, not compressed."""
    tags = dict(sorted({258: 8, 259: 1, 262: 1, 277: 1, **tags}.items()))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(100)


def lines_16(channels: int) -> bytes:
    rows = (np.stack([row] * channels, axis=-1).astype(">u2").tobytes() for row in RAMP_16)
    return b"".join(b"\0" + row for row in rows)


def refusal(data: bytes, kind: InputKind = "image") -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        probe(data, kind)
    with pytest.raises(type(caught.value)):
        read(data, kind)
    assert "\n" not in str(caught.value)
    assert caught.value.field == ("image" if kind == "image" else "mask_image")
    return caught.value


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_picture_is_read_exactly(kind: str) -> None:
    source = COLOUR.quantize(64).convert("RGB") if kind == "GIF" else COLOUR
    data = save(source, kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert probe(data, "image") == (96, 64, ())
    decoded = read(data)
    assert (decoded.pixels.dtype, decoded.notes) == (np.uint8, ())
    assert (decoded.pixels == np.asarray(source)).all()


def test_a_jpeg_is_read_as_well_as_jpeg_can() -> None:
    data = save(COLOUR, "JPEG", quality=95)
    assert probe(data, "image") == (96, 64, ())
    assert abs(read(data).pixels.astype(int) - np.asarray(COLOUR)).mean() < 2


def test_resizing_is_what_diffusers_does() -> None:
    big = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 75, 3), dtype=np.uint8))
    decoded = read(save(big, "PNG"))
    expected = big.resize((96, 64), Image.Resampling.LANCZOS)
    assert (decoded.pixels == np.asarray(expected)).all()
    assert decoded.notes == ("image: scaled from 75 x 50 to 96 x 64",)
    assert read(save(big.crop((0, 0, 50, 50)), "PNG")).notes == (
        "image: scaled from 50 x 50 to 96 x 64, which changes its proportions",
    )


@pytest.mark.parametrize(
    ("picture", "size", "stretched"),
    [
        ((8000, 8), (8, 4096), True), ((8, 8000), (4096, 8), True), ((512, 100), (96, 512), True),
        ((500, 333), (328, 496), False), ((1024, 1024), (512, 512), False),
    ],
)  # fmt: skip
def test_a_picture_that_is_stretched_says_so(
    picture: tuple[int, int], size: tuple[int, int], stretched: bool
) -> None:
    (note,) = read_image(save(Image.new("RGB", picture), "PNG"), size).notes
    assert ("which changes its proportions" in note) is stretched


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"\xef\xbb\xbf  <HTML>", "a web page"),
        (b'<svg xmlns="x"><image href="file:///etc/passwd"/></svg>', "an SVG or XML file"),
        (b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x "y">]>', "an SVG or XML file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) (r) file", "an EPS file"),
        (b"\xc5\xd0\xd3\xc6" + bytes(30), "an EPS file"),
        (b"%PDF-1.7", "a PDF file"),
        (b"8BPS\0\1", "a Photoshop file"),
        (b"SIMPLE  =                    T", "a FITS file"),
        (save(COLOUR, "ICO"), "an ICO file"),
        (save(COLOUR, "JPEG2000"), "a JPEG 2000 file"),
        (b"\0\0\0\x1cftypheic", "a HEIC"),
        (b"\0\0\0\x1cftypavif", "an AVIF file"),
        (b'{"error": "not found"}', "text"),
        (b"data:image/png;base64,iVBORw0KGgo=", "text"),
        (save(COLOUR, "PPM"), "a file of unknown format"),
        (b"\0" * 100, "a file of unknown format"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, name: str) -> None:
    error = refusal(data)
    assert error.message.startswith(f"is {name}")
    assert "PNG, JPEG" in (error.hint or "")


def test_content_decides_and_not_the_name() -> None:
    """No name is even asked for: a JPEG that was called .png is a JPEG."""
    assert probe(save(COLOUR, "JPEG"), "image").width == 96


def test_nothing_at_all_is_refused() -> None:
    assert refusal(b"").message == "is empty"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_picture_is_refused(kind: str) -> None:
    data = save(COLOUR, kind)
    for share in (0.3, 0.6, 0.9):
        refusal(data[: int(len(data) * share)])


def test_a_wrong_checksum_is_refused() -> None:
    """In the pixel data too, where Pillow does not look."""
    good = save(COLOUR, "PNG")
    place = good.index(b"IDAT")
    for offset in (20, place + 10, len(good) - 3):
        bad = bytearray(good)
        bad[offset] ^= 1
        assert "wrong checksum" in refusal(bytes(bad)).message


def test_a_picture_without_pixels_is_refused() -> None:
    assert "0 x 0 pixels" in refusal(png(0, 0, 8, 2, b"")).message
    assert "pixels" in refusal(png(0, 5, 8, 2, b"")).message


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    huge = 2**31 - 1
    gif = bytearray(save(COLOUR.quantize(8), "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    bmp = bytearray(save(COLOUR, "BMP"))
    bmp[18:26] = struct.pack("<ii", huge, huge)
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\x3f\0\xff\x3f\0"
    lossless = b"VP8L" + struct.pack("<I", 5) + b"\x2f" + struct.pack("<I", 0x3FFF | 0x3FFF << 14)
    for data in (
        png(huge, huge, 8, 2, b""),
        png(12_000, 12_000, 1, 0, bytes(12_000 * 1_501)),
        tiff({256: 20_000, 257: 20_000, 273: 8, 278: 20_000, 279: 64}),
        bytes(gif),
        bytes(bmp),
        b"RIFF" + struct.pack("<I", 30) + b"WEBP" + canvas,
        b"RIFF" + struct.pack("<I", 30) + b"WEBP" + lossless,
    ):
        error = refusal(data)
        assert isinstance(error, TooLarge)
        assert "in all are allowed" in error.message


def test_a_huge_tile_in_a_tiff_is_refused() -> None:
    tiles = {256: 8, 257: 8, 322: 2**20, 323: 2**20, 324: 8, 325: 64}
    assert isinstance(refusal(tiff(tiles)), TooLarge)


def test_a_huge_colour_profile_is_refused() -> None:
    line = bytes(8 * 25)
    for body in (bytes(60_000_000), zlib.compress(bytes(60_000_000), 1)):
        error = refusal(png(8, 8, 8, 2, line, chunk(b"iCCP", b"name\0\0" + body)))
        assert "colour profile" in error.message


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    """A small file whose every scan goes over all pixels again."""
    good = save(COLOUR, "JPEG", progressive=True)
    place = good.rindex(b"\xff\xda")
    bomb = good[:place] + good[place:-2] * 300 + good[-2:]
    assert "scans" in refusal(bomb).message


def test_huge_texts_are_left_packed() -> None:
    text = chunk(b"zTXt", b"name\0\0" + zlib.compress(bytes(60_000_000), 1))
    assert probe(png(8, 8, 8, 2, bytes(8 * 25), text), "image") == (8, 8, ())


def test_a_foreign_colour_profile_is_mentioned() -> None:
    data = save(COLOUR, "JPEG", icc_profile=b"Display P3")
    assert "profile was not applied" in read(data).notes[0]
    assert read(save(COLOUR, "JPEG", icc_profile=b"sRGB IEC61966-2.1")).notes == ()


def test_more_bytes_than_allowed_are_refused() -> None:
    assert isinstance(refusal(bytes(MAX_PICTURE_BYTES + 1)), TooLarge)


@pytest.mark.parametrize(
    "data",
    [
        save(Image.fromarray(RAMP_16), "PNG"),
        save(Image.fromarray(RAMP_16), "TIFF"),
        png(96, 64, 16, 0, lines_16(1)),
        png(96, 64, 16, 2, lines_16(3)),
    ],
)
def test_16_bits_are_scaled_and_never_clipped(data: bytes) -> None:
    decoded = read(data)
    assert (decoded.pixels == (RAMP_16 >> 8).astype(np.uint8)[..., None]).all()
    assert decoded.notes == ("image: was converted from 16 to 8 bits",)


def test_16_bits_with_a_transparent_grey_are_laid_on_white() -> None:
    decoded = read(png(96, 64, 16, 0, lines_16(1), chunk(b"tRNS", b"\0\0")))
    assert decoded.pixels[0, 0].tolist() == [255, 255, 255]
    assert decoded.pixels[1, 0].tolist() == [RAMP_16[1, 0] >> 8] * 3
    assert "was laid on white" in decoded.notes[1]


@pytest.mark.parametrize("mode", ["F", "I"])
def test_other_depths_are_refused(mode: str) -> None:
    assert "32 bits" in refusal(save(GREY.convert(mode), "TIFF")).message


def test_other_colour_modes_are_refused() -> None:
    assert "colour mode LAB" in refusal(save(Image.new("LAB", (5, 5)), "TIFF")).message


def test_cmyk_is_converted() -> None:
    for kind in ("JPEG", "TIFF"):
        decoded = read(save(COLOUR.convert("CMYK"), kind))
        assert abs(decoded.pixels.astype(int) - np.asarray(COLOUR)).mean() < 4
        assert decoded.notes == ("image: was converted from CMYK",)


def test_one_bit_is_black_and_white() -> None:
    source = GREY.convert("1")
    for data in (save(source, "PNG"), save(source, "TIFF", compression="group4")):
        assert (read(data).pixels == np.asarray(source.convert("RGB"))).all()


def test_transparency_is_laid_on_white() -> None:
    white = np.full((*SIZE, 3), 255)
    alpha = RAMP[..., None] / 255
    expected = np.asarray(COLOUR) * alpha + white * (1 - alpha)
    rgba = COLOUR.copy()
    rgba.putalpha(GREY)
    for data in (save(rgba, "PNG"), save(rgba, "WEBP", lossless=True, exact=True)):
        decoded = read(data)
        assert abs(decoded.pixels - expected).max() < 2
        assert decoded.notes == ("image: has transparent parts; it was laid on white",)
    grey = read(save(Image.merge("LA", [GREY, GREY]), "PNG"))
    assert abs(grey.pixels[..., 0] - (RAMP * alpha[..., 0] + 255 * (1 - alpha[..., 0]))).max() < 2


def test_grey_with_an_alpha_that_is_multiplied_in_is_laid_on_white() -> None:
    """As TIFF's ``ExtraSamples`` of 1 says."""
    grey, alpha = Image.new("L", SIZE, 100), Image.new("L", SIZE, 128)
    out = io.BytesIO()
    Image.merge("LA", (grey, alpha)).save(out, "TIFF")
    start = struct.pack("<HHI", 338, 3, 1)  # the tag, a short number, one of them
    data = out.getvalue().replace(start + b"\2", start + b"\1")
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "La"
    found = read_image(data, (SIZE[1], SIZE[0]))
    assert "was laid on white" in found.notes[0]
    assert (abs(found.pixels.astype(int) - (100 + 127)) <= 1).all()
    assert probe(data, "image").notes == found.notes
    assert (read_mask(data, (SIZE[1], SIZE[0])).pixels == 0).all(), "100 is below the half"


def test_a_transparent_colour_of_a_palette_is_laid_on_white() -> None:
    flat = Image.new("P", (96, 64), 0)
    flat.putpalette([10, 20, 30, 200, 100, 50])
    flat.paste(1, (0, 0, 48, 64))
    for transparency in (0, b"\0"):
        decoded = read(save(flat, "PNG", transparency=transparency))
        assert decoded.pixels[0, 0].tolist() == [200, 100, 50]
        assert decoded.pixels[0, 95].tolist() == [255, 255, 255]


def test_an_opaque_alpha_channel_is_not_worth_a_note() -> None:
    assert read(save(COLOUR.convert("RGBA"), "PNG")).notes == ()


def test_a_fully_transparent_picture_becomes_white_and_says_so() -> None:
    decoded = read(save(Image.new("RGBA", (96, 64), (1, 2, 3, 0)), "PNG"))
    assert (decoded.pixels == 255).all()
    assert decoded.notes == ("image: is fully transparent; it was laid on white",)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_is_taken_and_it_is_said(kind: str) -> None:
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    first, others = Image.new("RGB", (96, 64), (255, 0, 0)), [Image.new("RGB", (96, 64))] * 2
    data = save(first, kind, save_all=True, append_images=others, **options)
    decoded = read(data)
    assert decoded.notes == ("image: has several frames; the first one was taken",)
    assert probe(data, "image").notes == decoded.notes
    assert (decoded.pixels == [255, 0, 0]).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_camera_is_held_upright(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    source = Image.new("RGB", (64, 96), (0, 0, 255))
    source.paste((255, 0, 0), (0, 0, 64, 32))
    data = save(source.transpose(Image.Transpose.ROTATE_90), kind, exif=exif)
    picture = probe(data, "image")
    assert (picture.width, picture.height) == (64, 96)
    pixels = read_image(data, (96, 64)).pixels.astype(int)
    assert pixels[4, 32, 0] > 200
    assert pixels[90, 32, 2] > 200


def test_damaged_exif_data_do_not_matter() -> None:
    for exif in (
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0nonsense",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
    ):
        assert probe(save(COLOUR, "JPEG", exif=exif), "image").width == 96


def test_damage_anywhere_gives_one_clear_line() -> None:
    """A thousand damaged files: each is read, or refused with an error of the farm."""
    exif = Image.Exif()
    exif[0x0112] = 6
    small = COLOUR.resize((24, 16))
    sources = [
        save(small, "PNG", exif=exif),
        save(small, "JPEG", exif=exif),
        save(small, "WEBP", lossless=True, exif=exif),
        save(small.convert("RGBA"), "WEBP"),
        save(small.quantize(8), "GIF"),
        save(small, "BMP"),
        save(small.quantize(8), "BMP"),
        save(small, "TIFF", exif=exif),
        save(small, "TIFF", compression="tiff_lzw"),
        save(small.convert("1"), "TIFF", compression="group4"),
    ]
    chance = random.Random(1)
    refused = []
    for _ in range(1000):
        data = bytearray(chance.choice(sources))
        for _ in range(chance.choice((1, 2, 8))):
            data[chance.randrange(min(len(data), chance.choice((64, 10_000))))] = chance.randrange(
                256
            )
        try:
            probe(bytes(data), "image")
        except FarmError as error:
            refused.append(str(error))
    assert len(refused) > 300
    assert not [line for line in refused if "\n" in line]
