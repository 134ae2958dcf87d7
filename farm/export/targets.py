"""What an export writes: a group of pictures at a time, as one shard or one folder of files."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from farm.disk import draft_of, put_whole
from farm.export.fetched import Decode, FetchedPicture, as_pictures, as_tokens
from farm.formats.credentials import Sign
from farm.formats.manifest import ManifestRow
from farm.job import Format
from farm.sinks.layout import Layout
from farm.sinks.parquet import Tokens


class Target(Protocol):
    """Writes a group at a path that is free; it is there whole or not at all."""

    folders: bool  # whether a group is a folder of files
    pattern: str  # of the groups of a split, as in ``data/{split}-*.tar``

    def name(self, split: str, number: int) -> str:
        """Of one group, relative to the data set's folder."""
        ...

    def write(self, path: Path, pictures: Sequence[FetchedPicture]) -> list[ManifestRow]:
        """Returns the rows of what was written, with ``file`` as it is named in there."""
        ...


class ShardTarget:
    """Shards as a sink makes them.

    Args:
        layout: of a shard.
        decode: as ``as_pictures`` takes it.
        kind, sign: the same.
    """

    folders = False

    def __init__(
        self, layout: Layout, decode: Decode | None, kind: Format, sign: Sign | None = None
    ) -> None:
        self._layout = layout
        self._decode = decode
        self._kind = kind
        self._sign = sign
        self.pattern = f"data/{{split}}-*{layout.suffix}"

    def name(self, split: str, number: int) -> str:
        return f"data/{split}-{number:05d}{self._layout.suffix}"

    def write(self, path: Path, pictures: Sequence[FetchedPicture]) -> list[ManifestRow]:
        if isinstance(self._layout, Tokens):
            made = [as_tokens(picture) for picture in pictures]
        else:
            made = list(as_pictures(pictures, self._decode, self._kind, self._sign))
        rows = [row for row, _ in made]
        write_whole(path, self._layout.pack(rows, [content for _, content in made]).data)
        return rows


class ImageFolder:
    """Picture files, as the loader ``imagefolder`` of datasets reads them.

    Args:
        decode: as ``as_pictures`` takes it.
        kind, sign: the same.
    """

    folders = True
    pattern = "{split}/**"

    def __init__(self, decode: Decode | None, kind: Format, sign: Sign | None = None) -> None:
        self._decode = decode
        self._kind = kind
        self._sign = sign

    def name(self, split: str, number: int) -> str:
        return f"{split}/{number:05d}"

    def write(self, path: Path, pictures: Sequence[FetchedPicture]) -> list[ManifestRow]:
        draft = draft_of(path)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        rows = []
        for row, data in as_pictures(pictures, self._decode, self._kind, self._sign):
            (draft / str(row.file)).write_bytes(data)
            rows.append(row)
        draft.replace(path)
        return rows


def write_whole(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    put_whole(path, data)
