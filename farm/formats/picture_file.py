"""What every picture file carries besides its pixels: the render it came from, and its tokens."""

import base64
import io
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from PIL import Image

from farm.errors import InvalidInput
from farm.job import Format
from farm.spec import RenderSpec, canonical_json, row_seed

KEYWORD = "amused-farm"  # of the PNG chunk and of the safetensors metadata
FACTS_VERSION = 1

EXTENSIONS: Mapping[Format, str] = {
    Format.PNG: "png",
    Format.WEBP: "webp",
    Format.JPEG: "jpg",
    Format.TOKENS: "safetensors",
}
CONTENT_TYPES: Mapping[Format, str] = {
    Format.PNG: "image/png",
    Format.WEBP: "image/webp",
    Format.JPEG: "image/jpeg",
    Format.TOKENS: "application/octet-stream",
}

EXIF_IFD = 0x8769
EXIF_USER_COMMENT = 0x9286
EXIF_ASCII = b"ASCII\0\0\0"  # the character code that a user comment starts with


class Facts(NamedTuple):
    """Enough to make the picture again, or to check that it is what it should be."""

    spec: RenderSpec
    image: int  # index in its render
    numerics: str
    tokens: NDArray[np.uint16]  # (rows, columns)
    notes: tuple[str, ...] = ()  # what the user should know of it, such as a prompt that was cut
    confidence: float | None = None  # mean probability of its tokens, when each was fixed

    @property
    def seed(self) -> int:
        return row_seed(self.spec.seed, self.image)

    def to_json(self, *, with_tokens: bool = True) -> str:
        """ASCII, so that no container's encoding matters."""
        facts: dict[str, Any] = {
            "v": FACTS_VERSION,
            "spec": self.spec.model_dump(mode="json"),
            "image": self.image,
            "seed": self.seed,
            "numerics": self.numerics,
        }
        if self.notes:
            facts["notes"] = list(self.notes)
        if self.confidence is not None:
            facts["confidence"] = self.confidence
        if with_tokens:
            facts["shape"] = list(self.tokens.shape)
            facts["tokens"] = base64.b64encode(token_bytes(self.tokens)).decode()
        return json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(
        cls,
        text: str,
        tokens: NDArray[np.uint16] | None = None,
        expected: RenderSpec | None = None,
    ) -> "Facts":
        """Args:
            text: as ``to_json`` wrote it.
            tokens: where they do not stand in the text.
            expected: the render that it probably is, which then need not be checked again.

        Raises:
            InvalidInput: it is damaged.
        """
        try:
            facts = json.loads(text)
            if facts["v"] != FACTS_VERSION:
                raise InvalidInput(
                    f"the file was written by a newer farm (facts of version {facts['v']})",
                    hint="update amused-farm",
                )
            if tokens is None:
                flat = np.frombuffer(base64.b64decode(facts["tokens"], validate=True), "<u2")
                rows, columns = facts["shape"]
                if rows < 1 or columns < 1:
                    raise ValueError("a grid has rows and columns")
                tokens = flat.reshape(rows, columns).astype(np.uint16)
            spec = _spec(facts["spec"], expected)
            notes = tuple(map(str, facts.get("notes", ())))
            told = facts.get("confidence")
            confidence = None if told is None else float(told)
            return cls(spec, int(facts["image"]), str(facts["numerics"]), tokens, notes, confidence)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidInput("the farm's data in the file are damaged") from error


def file_name(render: int, image: int, file_format: Format) -> str:
    """Of a picture in its job, as in ``00000731-02.png``; ``image`` counts in the render."""
    return f"{file_stem(render, image)}.{EXTENSIONS[file_format]}"


def file_stem(render: int, image: int) -> str:
    """The name without its extension."""
    return f"{render:08d}-{image:02d}"


def token_bytes(tokens: NDArray[Any]) -> bytes:
    """The bytes that ``tokens_sha256`` is taken over: uint16, little endian, row by row."""
    return np.ascontiguousarray(tokens, dtype="<u2").tobytes()


def token_grid(data: bytes, height: int, width: int) -> NDArray[np.uint16]:
    """The array (rows, columns) of those bytes; a picture's grid has the picture's proportions."""
    flat = np.frombuffer(data, "<u2").astype(np.uint16)
    return flat.reshape(-1, max(round((len(flat) * width / height) ** 0.5), 1))


def read_facts(data: bytes, expected: RenderSpec | None = None) -> Facts:
    """What the farm wrote into a picture file; raises ``InvalidInput`` if it is not one.

    Args:
        data: of the file.
        expected: as in ``Facts.from_json``.
    """
    if data.startswith(b"\x89PNG"):
        return Facts.from_json(_png_text(data), expected=expected)
    if data.startswith(b"\xff\xd8\xff"):
        return Facts.from_json(_user_comment(data, "JPEG"), expected=expected)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return Facts.from_json(_user_comment(data, "WEBP"), expected=expected)
    return _token_file(data, expected)


def _spec(told: Any, expected: RenderSpec | None) -> RenderSpec:
    text = canonical_json(told)
    if expected is not None and text == expected.canonical():
        return expected
    return RenderSpec.model_validate_json(text)


def _png_text(data: bytes) -> str:
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            text = image.info.get(KEYWORD)
            if text is None:  # another program may have moved it behind the pixels
                text = image.text.get(KEYWORD)  # type: ignore[attr-defined]
    except Exception as error:  # whatever a damaged file leads Pillow to
        raise _damaged() from error
    if text is None:
        raise _nothing_recorded()
    return str(text)


def _user_comment(data: bytes, kind: str) -> str:
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            comment = image.getexif().get_ifd(EXIF_IFD).get(EXIF_USER_COMMENT)
    except Exception as error:  # whatever a damaged file leads Pillow to
        raise _damaged() from error
    if not isinstance(comment, bytes) or not comment.startswith(EXIF_ASCII + b"{"):
        raise _nothing_recorded()
    return comment.removeprefix(EXIF_ASCII).decode("ascii", "replace")


def _token_file(data: bytes, expected: RenderSpec | None) -> Facts:
    try:
        tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError):
        raise InvalidInput("is not a picture or token file of the farm") from None
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    text = (header.get("__metadata__") or {}).get(KEYWORD)
    tokens = tensors.get("tokens")
    if text is None or tokens is None:
        raise _nothing_recorded()
    return Facts.from_json(text, tokens.astype(np.uint16), expected)


def _nothing_recorded() -> InvalidInput:
    return InvalidInput(
        "no render is recorded in the file",
        hint="only files that the farm wrote and that no other program changed have one",
    )


def _damaged() -> InvalidInput:
    return InvalidInput("the file is damaged")
