"""Pictures of a task of which the tokens are all that is kept: from an engine to the manifest."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from farm.formats.manifest import ManifestColumns
from farm.job import Chunk
from farm.spec import row_seed

Value = TypeVar("Value")


@dataclass
class TokenPictures:
    """By columns, in the order in which they were made; what their chunk says is not repeated."""

    chunk: Chunk  # with their renders
    pictures: list[tuple[int, int]]  # index of the render in the job, of the picture in the render
    tokens: list[bytes]  # as of ``token_bytes``
    numerics: list[str]  # this and the next two as in ``Facts``
    notes: list[tuple[str, ...]]
    confidence: list[float | None]

    def __len__(self) -> int:
        return len(self.pictures)

    def extend(self, others: "TokenPictures") -> None:
        """More of the same chunk."""
        self.pictures += others.pictures
        self.tokens += others.tokens
        self.numerics += others.numerics
        self.notes += others.notes
        self.confidence += others.confidence

    def rows(self, generation: int) -> ManifestColumns:
        """Their rows, as ``PictureRecord.tokens_row`` makes them."""
        renders = self.chunk.renders
        places = {number: place for place, number in enumerate(renders.numbers)}
        numbers, images = zip(*self.pictures, strict=True)
        at = [places[number] for number in numbers]

        def of_each(values: Iterable[Value]) -> list[Value]:
            return list(map(tuple(values).__getitem__, at))

        specs = renders.canonical()
        seeds = zip(of_each(renders.seeds), images, strict=True)
        hashes = _hashes(self.tokens)
        nothing: Sequence[None] = [None] * len(self)
        return ManifestColumns(
            {
                "job": [self.chunk.job] * len(self),
                "generation": [generation] * len(self),
                "render": numbers,
                "image": images,
                "file": nothing,
                "sha256": hashes,
                "size": list(map(len, self.tokens)),
                "width": of_each(renders.of_each(lambda spec: spec.width)),
                "height": of_each(renders.of_each(lambda spec: spec.height)),
                "seed": [row_seed(seed, image) for seed, image in seeds],
                "spec_sha256": of_each(_hashes([text.encode() for text in specs])),
                "spec": of_each(specs),
                "tokens": self.tokens,
                "tokens_sha256": hashes,
                "numerics": self.numerics,
                "notes": self.notes,
                "error": nothing,
                "metadata": of_each(renders.metadata) if renders.metadata else nothing,
                "confidence": self.confidence,
                "prompt": of_each(renders.prompts),
                "common": of_each(renders.of_each(lambda spec: json.loads(spec.common))),
            }
        )


def _hashes(contents: Iterable[bytes]) -> list[str]:
    sha256 = hashlib.sha256
    return [sha256(content).hexdigest() for content in contents]
