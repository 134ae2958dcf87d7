"""From a rendered picture to its file and its manifest row; farm and ``farm render`` share it."""

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from farm.errors import Conflict, FarmError, InvalidInput
from farm.formats.encoding import encode
from farm.formats.manifest import ManifestRow
from farm.formats.picture_file import CONTENT_TYPES, Facts, read_facts, token_bytes
from farm.job import Format
from farm.spec import RenderSpec, Row, canonical_json
from farm.store import Store


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

    def facts(self, tokens: NDArray[np.integer]) -> Facts:
        return Facts(self.spec, self.image, self.numerics, tokens.astype(np.uint16), self.notes)


def encode_picture(
    record: PictureRecord, pixels: NDArray[np.uint8] | None, tokens: NDArray[np.integer]
) -> bytes:
    return encode(pixels, record.facts(tokens), record.format)


def store_picture(store: Store, key: str, record: PictureRecord, data: bytes) -> ManifestRow:
    """Put a picture's file into the store, and say what lies there now.

    If the key is taken, the stored picture counts, whoever made it: its bytes and its facts go
    into the row.

    Raises:
        Conflict: what lies there is not this picture.
    """
    if not store.put(key, data, content_type=CONTENT_TYPES[record.format]):
        data = store.get(key)
    return stored_row(record, key, data)


def stored_row(record: PictureRecord, key: str, data: bytes) -> ManifestRow:
    """The row of a picture whose file has these bytes."""
    try:
        facts = read_facts(data)
    except InvalidInput as error:
        raise Conflict(
            f"{key} is taken by something that is no picture of this farm: {error.message}",
            hint="move it away, and retry the job",
        ) from error
    if (facts.spec.sha256, facts.image) != (record.spec.sha256, record.image):
        raise Conflict(
            f"{key} is taken by a picture of another render",
            hint="two farms may write to one store under the same prefix; give each its own",
        )
    tokens = token_bytes(facts.tokens)
    return _row(record, facts.numerics)._replace(
        notes=facts.notes,
        file=key,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        tokens=tokens,
        tokens_sha256=hashlib.sha256(tokens).hexdigest(),
    )


def failed_row(record: PictureRecord, error: FarmError) -> ManifestRow:
    """The row of a picture that could not be made."""
    return _row(record, record.numerics)._replace(error=canonical_json(error.to_dict()))


def _row(record: PictureRecord, numerics: str) -> ManifestRow:
    return ManifestRow(
        job=record.job,
        generation=record.generation,
        render=record.render,
        image=record.image,
        file=None,
        sha256=None,
        size=None,
        width=record.spec.width,
        height=record.spec.height,
        seed=Row(record.spec, record.image).seed,
        spec_sha256=record.spec.sha256,
        spec=record.spec.canonical(),
        tokens=None,
        tokens_sha256=None,
        numerics=numerics,
        notes=record.notes,
    )
