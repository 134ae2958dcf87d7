"""Columns that are added to a job's pictures afterwards: parts beside the manifest."""

import io
from collections.abc import Mapping, Sequence
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from farm.errors import StoreError

MAX_SCORES = 1000  # pictures in a part

Column = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
Value = (
    Annotated[bool, Field(strict=True)]
    | Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
    | Annotated[float, Field(strict=True, allow_inf_nan=False)]
    | Annotated[str, Field(strict=True, max_length=1000)]
)

_KEY = {"render": pa.int64(), "image": pa.int32(), "sha256": pa.string()}


class PictureScores(BaseModel):
    """What a scorer says of one picture. The hash says of which bytes: a picture that was made
    again with other bytes has no scores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    render: Annotated[int, Field(strict=True, ge=0, lt=2**63)]
    image: Annotated[int, Field(strict=True, ge=0, lt=2**31)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    values: Annotated[dict[Column, Value], Field(max_length=32)]


def write_scores(rows: Sequence[PictureScores]) -> bytes:
    """As Parquet, ordered by render and image; the same rows give the same bytes.

    Raises:
        pa.ArrowException: a column has values of several types.
    """
    ordered = sorted(rows, key=lambda row: (row.render, row.image))
    names = sorted({name for row in ordered for name in row.values})
    columns = {
        **{
            name: pa.array([getattr(row, name) for row in ordered], kind)
            for name, kind in _KEY.items()
        },
        **{f"values.{name}": pa.array([row.values.get(name) for row in ordered]) for name in names},
    }
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, compression="zstd", version="2.6")
    return out.getvalue()


def read_scores(data: bytes) -> list[PictureScores]:
    try:
        rows = pq.read_table(pa.BufferReader(data)).to_pylist()
        return [_scores(row) for row in rows]
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise StoreError("a part with scores is damaged", hint="score the job again") from error


def _scores(row: Mapping[str, object]) -> PictureScores:
    values = {
        name.removeprefix("values."): value
        for name, value in row.items()
        if name.startswith("values.") and value is not None
    }
    return PictureScores.model_validate({**{name: row[name] for name in _KEY}, "values": values})
