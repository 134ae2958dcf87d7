"""A folder that ``farm fetch`` has filled: pictures or tokens, and their manifest."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from farm.errors import Conflict
from farm.formats.credentials import Sign
from farm.formats.manifest import ManifestRow
from farm.formats.picture_file import EXTENSIONS, Facts, read_facts, token_bytes, token_grid
from farm.job import Format
from farm.spec import RenderSpec, canonical_json

MANIFEST = "manifest.jsonl"
SELECTED = "selected.jsonl"  # the lines that are wanted, where not all are
RAW_TOKENS = ".u16"  # as the sink ``tokens`` keeps them
TOKEN_FILES = (RAW_TOKENS, f".{EXTENSIONS[Format.TOKENS]}")


class FetchedPicture(NamedTuple):
    """A line of the manifest, and where the picture's file lies."""

    row: ManifestRow
    path: Path  # of the file, or of the shard around it
    offset: int | None = None  # in the shard
    data: bytes | None = None  # the picture's file, where it was read already

    @property
    def name(self) -> str:
        """Of the picture's file."""
        return str(self.row.file)

    @property
    def is_tokens(self) -> bool:
        return self.name.endswith(TOKEN_FILES)

    def loaded(self) -> "FetchedPicture":
        """With its file in memory.

        Raises:
            Conflict: it is not the file that was fetched, as after a power cut.
        """
        data = self.read() if self.path.exists() else b""
        if hashlib.sha256(data).hexdigest() != self.row.sha256:
            hint = "give --overwrite, to fetch all of them again"
            raise Conflict(f"{self.path} is not as it was fetched", field="--output", hint=hint)
        return self._replace(data=data)

    def read(self) -> bytes:
        """The picture's file."""
        if self.data is not None:
            return self.data
        if self.offset is None:
            return self.path.read_bytes()
        assert self.row.size is not None
        with self.path.open("rb") as shard:
            shard.seek(self.offset)
            return shard.read(self.row.size)

    def tokens(self) -> bytes:
        """As the sink ``tokens`` keeps them."""
        data = self.read()
        return data if self.name.endswith(RAW_TOKENS) else token_bytes(read_facts(data).tokens)

    def facts(self) -> Facts:
        """Tokens and spec."""
        data = self.read()
        if not self.name.endswith(RAW_TOKENS):
            return read_facts(data)
        spec, row = RenderSpec.model_validate_json(self.row.spec), self.row
        grid = token_grid(data, spec.height, spec.width)
        return Facts(spec, row.image, row.numerics, grid, row.notes, row.confidence)


# Gives each picture with its pixels (height, width, 3).
Decode = Callable[
    [Iterable[tuple[FetchedPicture, Facts]]],
    Iterator[tuple[FetchedPicture, Facts, NDArray[np.uint8]]],
]


def fetched_pictures(folder: Path) -> Iterator[FetchedPicture]:
    """Those that did not fail and are wanted, in the order of the manifest."""
    for told in wanted_lines(folder):
        yield fetched_picture(folder, told)


def wanted_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """Their lines."""
    selected = folder / SELECTED
    return read_manifest(selected if selected.exists() else folder / MANIFEST)


def fetched_picture(folder: Path, told: Mapping[str, Any]) -> FetchedPicture:
    """Of a line of its manifest; only where the folder has the shard, an offset is told."""
    offset = told.get("offset")
    name = told["file"] if offset is None else told["shard"]
    return FetchedPicture(row_of(told), folder / name, offset)


def read_manifest(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of pictures that did not fail."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            told = json.loads(line)
            if told["error"] is None:
                yield told


def failed_rows(folder: Path) -> Iterator[ManifestRow]:
    """Of the pictures that could not be made."""
    with (folder / MANIFEST).open(encoding="utf-8") as lines:
        yield from (row_of(told) for told in map(json.loads, lines) if told["error"] is not None)


def as_pictures(
    pictures: Sequence[FetchedPicture],
    decode: Decode | None,
    kind: Format,
    sign: Sign | None = None,
) -> Iterator[tuple[ManifestRow, bytes]]:
    """The row and the bytes of each picture's file; tokens are decoded to one.

    Args:
        pictures: what was fetched.
        decode: of their tokens; None where there are only pictures.
        kind: the format of what is decoded.
        sign: adds content credentials; None leaves the bytes as they are.
    """
    tokens = ((picture, picture.facts()) for picture in pictures if picture.is_tokens)
    decoded = iter(()) if decode is None else decode(tokens)
    for picture in pictures:
        if picture.is_tokens:
            from farm.formats.encoding import encode  # its packages come with what draws

            _, facts, pixels = next(decoded)
            data, extension = encode(pixels, facts, kind), EXTENSIONS[kind]
        else:
            data, extension = picture.read(), picture.name.rpartition(".")[2]
            if sign is None:
                yield picture.row, data
                continue
        data = data if sign is None else sign(data)
        yield _row_of(picture, extension, data), data


def as_tokens(picture: FetchedPicture) -> tuple[ManifestRow, bytes]:
    """The row and the bytes of its tokens."""
    data = picture.tokens()
    return _row_of(picture, RAW_TOKENS[1:], data)._replace(tokens=data), data


def _row_of(picture: FetchedPicture, extension: str, data: bytes) -> ManifestRow:
    sha256 = hashlib.sha256(data).hexdigest()
    file = f"{picture.name.rpartition('.')[0]}.{extension}"
    return picture.row._replace(file=file, sha256=sha256, size=len(data))


def row_of(told: Mapping[str, Any]) -> ManifestRow:
    spec = canonical_json(told["spec"])
    return ManifestRow(
        job="",  # a data set is not told from which job it came
        generation=told["generation"],
        render=told["render"],
        image=told["image"],
        file=told["file"],
        sha256=told["sha256"],
        size=told["size"],
        width=told["width"],
        height=told["height"],
        seed=told["seed"],
        spec_sha256=hashlib.sha256(spec.encode()).hexdigest(),
        spec=spec,
        tokens=None,
        tokens_sha256=told["tokens_sha256"],
        numerics=told["numerics"],
        notes=tuple(told["notes"]),
        metadata=canonical_json(told["metadata"]) if told["metadata"] else None,
        error=None if told["error"] is None else canonical_json(told["error"]),
        confidence=told["confidence"],
    )
