"""Pictures of a task of which the tokens are all that is kept: from an engine to the manifest."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from farm.formats.manifest import ManifestColumns
from farm.formats.picture_file import token_bytes
from farm.job import Chunk
from farm.spec import Row


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
        renders = {numbered.render: numbered for numbered in self._chunk.renders}
        numbered = [renders[render] for render, _ in self._pictures]
        specs = [one.spec for one in numbered]
        images = [image for _, image in self._pictures]
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
                "width": [spec.width for spec in specs],
                "height": [spec.height for spec in specs],
                "seed": [Row(spec, image).seed for spec, image in zip(specs, images, strict=True)],
                "spec_sha256": [spec.sha256 for spec in specs],
                "spec": [spec.canonical() for spec in specs],
                "tokens": self._tokens,
                "tokens_sha256": hashes,
                "numerics": self._numerics,
                "notes": self._notes,
                "error": nothing,
                "metadata": [one.metadata for one in numbered],
                "confidence": self._confidence,
            }
        )
