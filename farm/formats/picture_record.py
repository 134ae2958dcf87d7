"""A rendered picture besides its pixels, and the one builder of its row in the manifest."""

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from farm.errors import Conflict, FarmError, InvalidInput
from farm.formats.manifest import ManifestRow
from farm.formats.picture_file import Facts, file_name, read_facts, token_bytes
from farm.job import Format
from farm.spec import RenderSpec, canonical_json, row_seed


class PictureRecord(NamedTuple):
    """What is known of a picture besides its pixels and tokens."""

    job: str
    generation: int
    render: int  # index in the job
    image: int  # index in the render
    spec: RenderSpec
    numerics: str
    format: Format
    notes: tuple[str, ...] = ()
    metadata: str | None = None  # canonical JSON, of the user
    confidence: float | None = None  # see ``Facts``

    @classmethod
    def of_row(cls, row: ManifestRow, picture_format: Format) -> "PictureRecord":
        """The record that a row describes."""
        return cls(
            job=row.job,
            generation=row.generation,
            render=row.render,
            image=row.image,
            spec=RenderSpec.model_validate_json(row.spec),
            numerics=row.numerics,
            format=picture_format,
            notes=row.notes,
            metadata=row.metadata,
            confidence=row.confidence,
        )

    @property
    def file_name(self) -> str:
        return file_name(self.render, self.image, self.format)

    def facts(self, tokens: NDArray[np.integer]) -> Facts:
        grid = tokens.astype(np.uint16)
        return Facts(self.spec, self.image, self.numerics, grid, self.notes, self.confidence)

    def stored_row(self, file: str, data: bytes) -> ManifestRow:
        """The row of a picture that is stored; the file's own facts go into it.

        Args:
            file: where it lies, in the words of its sink.
            data: the picture file's bytes.

        Raises:
            Conflict: the file is not this picture.
        """
        try:
            facts = read_facts(data, self.spec)
        except InvalidInput as error:
            raise Conflict(
                f"{file} is taken by something that is not a picture of this farm: {error.message}",
                hint="move it away, and retry the job",
            ) from error
        return self.row_of(file, facts, data)

    def row_of(self, file: str, facts: Facts, data: bytes) -> ManifestRow:
        """The same where the facts are known already.

        Raises:
            Conflict: they are those of another picture.
        """
        if (facts.spec.sha256, facts.image) != (self.spec.sha256, self.image):
            raise Conflict(
                f"{file} is taken by a picture of another render",
                hint="two farms may write to one store under the same prefix; give each its own",
            )
        tokens = token_bytes(facts.tokens)
        return self._row(
            numerics=facts.numerics,
            notes=facts.notes,
            confidence=facts.confidence,
            file=file,
            sha256=hashlib.sha256(data).hexdigest(),
            size=len(data),
            tokens=tokens,
            tokens_sha256=hashlib.sha256(tokens).hexdigest(),
        )

    def tokens_row(self, tokens: NDArray[np.integer]) -> ManifestRow:
        """The row of a picture of which only the tokens are kept, (rows, columns); its task's
        sink says where."""
        data = token_bytes(tokens)
        sha256 = hashlib.sha256(data).hexdigest()
        return self._row(
            numerics=self.numerics,
            notes=self.notes,
            confidence=self.confidence,
            sha256=sha256,
            size=len(data),
            tokens=data,
            tokens_sha256=sha256,
        )

    def failed_row(self, error: FarmError) -> ManifestRow:
        """The row of a picture that could not be made."""
        error_text = canonical_json(error.to_dict())
        return self._row(numerics=self.numerics, notes=self.notes, error=error_text)

    def _row(
        self,
        *,
        numerics: str,
        notes: tuple[str, ...],
        confidence: float | None = None,
        file: str | None = None,
        sha256: str | None = None,
        size: int | None = None,
        tokens: bytes | None = None,
        tokens_sha256: str | None = None,
        error: str | None = None,
    ) -> ManifestRow:
        return ManifestRow(
            job=self.job,
            generation=self.generation,
            render=self.render,
            image=self.image,
            file=file,
            sha256=sha256,
            size=size,
            width=self.spec.width,
            height=self.spec.height,
            seed=row_seed(self.spec.seed, self.image),
            spec_sha256=self.spec.sha256,
            spec=self.spec.canonical(),
            tokens=tokens,
            tokens_sha256=tokens_sha256,
            numerics=numerics,
            notes=notes,
            error=error,
            metadata=self.metadata,
            confidence=confidence,
        )
