"""Picture files: their pixels, the facts inside them, and that their bytes never vary."""

import hashlib
import io
import json
import math
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from fake_engine import INFO
from PIL import Image

from farm.errors import InvalidInput
from farm.formats import encoding
from farm.formats.decoding import read_image
from farm.formats.encoding import encode
from farm.formats.origin import digital_source_type
from farm.formats.picture_file import (
    CONTENT_TYPES,
    EXTENSIONS,
    KEYWORD,
    Facts,
    read_facts,
    token_bytes,
)
from farm.job import Format
from farm.spec import MAX_PROMPT_CHARACTERS, MAX_SEED, RenderRequest

RANDOM = np.random.default_rng(7)
TOKENS = RANDOM.integers(0, 8192, (32, 32)).astype(np.uint16)
SMOOTH = np.fromfunction(lambda y, x, c: (x + y * (c + 1)) % 256, (64, 48, 3)).astype(np.uint8)


def facts(prompt: str = "a red bicycle", tokens: Any = TOKENS, **request: Any) -> Facts:
    spec = RenderRequest(prompt=prompt, **request).resolve(INFO, seed=5)
    return Facts(spec, 1, "fake@0/float32/cpu", tokens)


def png_pixels(data: bytes) -> np.ndarray:
    """A PNG read by the letter of its specification, without Pillow."""
    offset, packed, width, height = 8, b"", 0, 0
    while offset < len(data):
        length, name = struct.unpack_from(">I4s", data, offset)
        body = data[offset + 8 : offset + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, offset + 8 + length)
        assert checksum == zlib.crc32(name + body)
        if name == b"IHDR":
            width, height, *rest = struct.unpack(">IIBBBBB", body)
            assert rest == [8, 2, 0, 0, 0]
        packed += body if name == b"IDAT" else b""
        offset += length + 12
    lines = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * 3)
    pixels = np.zeros((height, width * 3), np.uint8)
    for y, line in enumerate(lines):
        above = pixels[y - 1] if y else np.zeros(width * 3, np.uint8)
        left = np.zeros(3, np.uint8)
        for x in range(0, width * 3, 3):
            value, up = line[1 + x : 4 + x], above[x : x + 3]
            match line[0]:
                case 1:
                    value = value + left
                case 2:
                    value = value + up
                case other:
                    assert other == 0
            pixels[y, x : x + 3] = left = value
    return pixels.reshape(height, width, 3)


@pytest.mark.parametrize("kind", list(Format))
def test_the_facts_come_back_from_every_format(kind: Format) -> None:
    written = facts("ein “rotes” Fahrrad 🚲,\nzweite Zeile \\ ", seed=MAX_SEED, num_images=2)
    read = read_facts(encode(SMOOTH, written, kind))
    assert read.spec == written.spec
    assert read.spec.sha256 == written.spec.sha256
    assert (read.image, read.numerics, read.seed) == (1, "fake@0/float32/cpu", 0)
    assert read.tokens.dtype == np.uint16
    assert (read.tokens == TOKENS).all()


@pytest.mark.parametrize("kind", list(Format))
def test_the_longest_prompts_and_largest_grids_fit(kind: Format) -> None:
    """A JPEG's EXIF block has room for 64 KiB only."""
    longest = "🚲" * MAX_PROMPT_CHARACTERS
    tokens = RANDOM.integers(0, 8192, (64, 64)).astype(np.uint16)
    written = facts(longest, tokens, negative_prompt=longest)
    assert read_facts(encode(SMOOTH, written, kind)).spec == written.spec


@pytest.mark.parametrize("kind", list(Format))
def test_a_note_that_repeats_the_longest_prompt_costs_no_picture(kind: Format) -> None:
    """Words that a checkpoint does not know are in a note, however long they are."""
    longest = "\U0001d400" * MAX_PROMPT_CHARACTERS  # a word of mathematical letters
    tokens = RANDOM.integers(0, 8192, (64, 64)).astype(np.uint16)
    plain = facts(longest, tokens, negative_prompt=longest)
    noted = plain._replace(notes=INFO.model_copy(update={"vocabulary": ("a",)}).notes(plain.spec))
    assert longest in noted.notes[0]
    written = read_facts(encode(SMOOTH, noted, kind))
    assert written.spec == noted.spec
    assert written.notes == (() if kind is Format.JPEG else noted.notes)


PICTURES = [Format.PNG, Format.WEBP, Format.JPEG]


@pytest.mark.parametrize("kind", PICTURES)
def test_every_picture_says_that_it_was_generated(kind: Format) -> None:
    """Read by Pillow's own parser of XMP."""
    data = encode(SMOOTH, facts(), kind)
    with Image.open(io.BytesIO(data)) as image:
        (about,) = image.getxmp()["xmpmeta"]["RDF"].values()
    assert about["CreatorTool"] == "amused-farm"
    assert about["DigitalSourceType"].endswith("/digitalsourcetype/trainedAlgorithmicMedia")
    assert digital_source_type(data) == about["DigitalSourceType"]


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_without_the_mark_is_read_as_well(
    kind: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As earlier versions wrote them."""
    monkeypatch.setattr(encoding, "XMP", b"")
    data = encode(SMOOTH, facts(), kind)
    assert digital_source_type(data) is None
    assert read_facts(data).spec == facts().spec


@pytest.mark.parametrize("kind", list(Format))
def test_the_confidence_comes_back_from_every_format(kind: Format) -> None:
    for confidence in (None, 0.0, 0.7312):
        written = facts()._replace(confidence=confidence)
        assert read_facts(encode(SMOOTH, written, kind)).confidence == confidence


@pytest.mark.parametrize("kind", list(Format))
def test_the_same_picture_gives_the_same_bytes(kind: Format) -> None:
    assert len({encode(SMOOTH, facts(), kind) for _ in range(20)}) == 1


def test_another_process_gives_the_same_bytes() -> None:
    script = (
        "import hashlib, test_encoder as t\n"
        "print(*(hashlib.sha256(t.encode(t.SMOOTH, t.facts(tokens=t.SMOOTH[..., 0]), k))"
        ".hexdigest() for k in t.Format))"
    )
    ours = [
        hashlib.sha256(encode(SMOOTH, facts(tokens=SMOOTH[..., 0]), kind)).hexdigest()
        for kind in Format
    ]
    theirs = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert theirs.stdout.split() == ours


@pytest.mark.parametrize(
    "pixels",
    [
        SMOOTH,
        np.zeros((16, 16, 3), np.uint8),
        np.full((32, 8, 3), 255, np.uint8),
        RANDOM.integers(0, 256, (24, 40, 3), dtype=np.uint8),
        RANDOM.integers(0, 2, (33, 7, 3), dtype=np.uint8) * 255,
        SMOOTH[::2, ::-1],
    ],
)
def test_lossless_formats_keep_every_pixel(pixels: np.ndarray) -> None:
    png = encode(pixels, facts(), Format.PNG)
    assert (png_pixels(png) == pixels).all()
    for data in (png, encode(pixels, facts(), Format.WEBP)):
        with Image.open(io.BytesIO(data)) as image:
            assert (image.mode, image.size) == ("RGB", pixels.shape[1::-1])
            assert (np.asarray(image) == pixels).all()
        assert (read_image(data, pixels.shape[:2]).pixels == pixels).all()


def test_jpeg_is_close() -> None:
    with Image.open(io.BytesIO(encode(SMOOTH, facts(), Format.JPEG))) as image:
        assert abs(np.asarray(image).astype(int) - SMOOTH).mean() < 8


def test_any_reader_finds_the_facts() -> None:
    """Plain Pillow and plain safetensors, without the farm."""
    with Image.open(io.BytesIO(encode(SMOOTH, facts(), Format.PNG))) as image:
        found = json.loads(image.info[KEYWORD])
    assert found["spec"]["prompt"] == "a red bicycle"
    assert (found["seed"], found["image"]) == (6, 1)
    data = encode(None, facts(), Format.TOKENS)
    tokens = safetensors.numpy.load(data)["tokens"]
    assert (tokens.dtype, tokens.shape) == (np.int32, (32, 32))


def test_facts_survive_a_program_that_moves_the_text_behind_the_pixels() -> None:
    data = encode(SMOOTH, facts(), Format.PNG)
    length = data.index(b"IDAT") - 4 - 33
    moved = data[:33] + data[33 + length : -12] + data[33 : 33 + length] + data[-12:]
    assert read_facts(moved).spec == facts().spec


def test_no_pixels_no_picture() -> None:
    with pytest.raises(ValueError, match="png needs pixels"):
        encode(None, facts(), Format.PNG)


def test_a_file_of_somebody_else_has_no_facts() -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        out = io.BytesIO()
        Image.fromarray(SMOOTH).save(out, kind)
        with pytest.raises(InvalidInput, match="no render is recorded"):
            read_facts(out.getvalue())
    with pytest.raises(InvalidInput, match="no render is recorded"):
        read_facts(safetensors.numpy.save({"tokens": TOKENS}))


@pytest.mark.parametrize("data", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", bytes(99)])
def test_what_is_no_file_of_the_farm_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        read_facts(data)


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"spec": {}},
        {"spec": None},
        {"tokens": "!!"},
        {"tokens": "AAAA"},
        {"shape": [1, -1, 5]},
        {"shape": [-1, 32]},
        {"shape": "x"},
        {"image": "one"},
        {"image": math.inf},
        {"confidence": 10**400},
    ],
)
def test_facts_that_were_tampered_with_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Facts.from_json(json.dumps({**json.loads(facts().to_json()), **change}))


def test_a_file_with_empty_metadata_has_nothing_recorded() -> None:
    """safetensors' own reader takes null for no metadata."""
    header = b'{"__metadata__":null,"tokens":{"dtype":"I32","shape":[1,1],"data_offsets":[0,4]}}'
    with pytest.raises(InvalidInput, match="no render is recorded"):
        read_facts(len(header).to_bytes(8, "little") + header + bytes(4))


def test_token_bytes_are_little_endian_whatever_the_array() -> None:
    tokens = np.array([[1, 256], [8191, 0]])
    expected = bytes([1, 0, 0, 1, 255, 31, 0, 0])
    for array in (tokens, tokens.astype(">u2"), tokens.astype(np.int32), tokens.T.copy().T):
        assert token_bytes(array) == expected


def test_every_format_has_a_name_and_a_type() -> None:
    assert set(EXTENSIONS) == set(CONTENT_TYPES) == set(Format)
