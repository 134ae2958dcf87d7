"""Pictures of a task of which the tokens are all that is kept: from an engine to the manifest."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from farm.formats.manifest import ManifestColumns
from farm.formats.picture_file import token_bytes
from farm.job import Chunk
from farm.spec import row_seed


class TokenPictures:
    """By columns, in the order in which they were made; what their chunk says is not repeated."""

    def __init__(self, chunk: Chunk) -> None:
        """
        Args:
            chunk: with their renders.
        """
        self._chunk = chunk
        self._pictures: list[tuple[int, int]] = []  # render and image
        self._tokens: list[bytes] = []
        self._numerics: list[str] = []
        self._notes: list[tuple[str, ...]] = []
        self._confidence: list[float | None] = []

    def __len__(self) -> int:
        return len(self._pictures)

    def add(
        self,
        picture: tuple[int, int],
        tokens: NDArray[np.integer],
        numerics: str,
        notes: tuple[str, ...],
        confidence: float | None,
    ) -> None:
        """One more.

        Args:
            picture: its render's index in the job, its own in the render.
            tokens: (rows, columns); copied.
            numerics, notes, confidence: as in ``Facts``.
        """
        self._pictures.append(picture)
        self._tokens.append(token_bytes(tokens))
        self._numerics.append(numerics)
        self._notes.append(notes)
        self._confidence.append(confidence)

    def extend(self, others: "TokenPictures") -> None:
        """More of the same chunk."""
        self._pictures += others._pictures
        self._tokens += others._tokens
        self._numerics += others._numerics
        self._notes += others._notes
        self._confidence += others._confidence

    def rows(self, generation: int) -> ManifestColumns:
        """Their rows, as ``PictureRecord.tokens_row`` makes them."""
        renders = self._chunk.renders
        places = {number: place for place, number in enumerate(renders.numbers)}
        at = [places[render] for render, _ in self._pictures]
        images = [image for _, image in self._pictures]
        widths = list(renders.of_each(lambda spec: spec.width))
        heights = list(renders.of_each(lambda spec: spec.height))
        specs = renders.canonical()
        spec_hashes = [hashlib.sha256(text.encode()).hexdigest() for text in specs]
        hashes = [hashlib.sha256(tokens).hexdigest() for tokens in self._tokens]
        nothing: Sequence[None] = [None] * len(self)
        return ManifestColumns(
            {
                "job": [self._chunk.job] * len(self),
                "generation": [generation] * len(self),
                "render": [render for render, _ in self._pictures],
                "image": images,
                "file": nothing,
                "sha256": hashes,
                "size": [len(tokens) for tokens in self._tokens],
                "width": [widths[place] for place in at],
                "height": [heights[place] for place in at],
                "seed": [
                    row_seed(renders.seeds[place], image)
                    for place, image in zip(at, images, strict=True)
                ],
                "spec_sha256": [spec_hashes[place] for place in at],
                "spec": [specs[place] for place in at],
                "tokens": self._tokens,
                "tokens_sha256": hashes,
                "numerics": self._numerics,
                "notes": self._notes,
                "error": nothing,
                "metadata": [renders.metadata[place] for place in at]
                if renders.metadata
                else nothing,
                "confidence": self._confidence,
            }
        )
