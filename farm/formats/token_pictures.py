"""Pictures of a task of which the tokens are all that is kept: from an engine to the manifest."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from farm.formats.manifest import ManifestColumns
from farm.job import Chunk
from farm.spec import row_seed


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
        at = [places[render] for render, _ in self.pictures]
        images = [image for _, image in self.pictures]
        widths = list(renders.of_each(lambda spec: spec.width))
        heights = list(renders.of_each(lambda spec: spec.height))
        specs = renders.canonical()
        spec_hashes = [hashlib.sha256(text.encode()).hexdigest() for text in specs]
        hashes = [hashlib.sha256(tokens).hexdigest() for tokens in self.tokens]
        nothing: Sequence[None] = [None] * len(self)
        return ManifestColumns(
            {
                "job": [self.chunk.job] * len(self),
                "generation": [generation] * len(self),
                "render": [render for render, _ in self.pictures],
                "image": images,
                "file": nothing,
                "sha256": hashes,
                "size": [len(tokens) for tokens in self.tokens],
                "width": [widths[place] for place in at],
                "height": [heights[place] for place in at],
                "seed": [
                    row_seed(renders.seeds[place], image)
                    for place, image in zip(at, images, strict=True)
                ],
                "spec_sha256": [spec_hashes[place] for place in at],
                "spec": [specs[place] for place in at],
                "tokens": self.tokens,
                "tokens_sha256": hashes,
                "numerics": self.numerics,
                "notes": self.notes,
                "error": nothing,
                "metadata": [renders.metadata[place] for place in at]
                if renders.metadata
                else nothing,
                "confidence": self.confidence,
            }
        )
