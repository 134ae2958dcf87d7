"""What stands beside a picture in a data set: the same columns in every format of shards.

No column depends on the job or the attempt that made a picture, so that the same renders give the
same shards in another job, on another farm, and in ``farm render``.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from farm.formats.manifest import ManifestRow

# No value is null or a list: both can be empty in the first rows of a data set, and readers that
# guess types from those would guess wrong.
FIXED: Mapping[str, pa.DataType] = {
    "render": pa.int64(),  # index in the job
    "index": pa.int32(),  # of the picture in its render
    "prompt": pa.string(),
    "negative_prompt": pa.string(),
    "checkpoint": pa.string(),
    "mode": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "seed": pa.uint64(),  # of this very picture
    "num_inference_steps": pa.int32(),
    "guidance_scale": pa.float64(),
    "confidence": pa.float64(),  # mean probability of its tokens, when each was fixed
    "numerics": pa.string(),  # class: inside one, the same spec gives the same tokens
    "notes": pa.string(),  # what the user should know of it, a line each
    "sha256": pa.string(),  # of the picture file, or of the tokens where only they are stored
    "tokens_sha256": pa.string(),
    "spec": pa.string(),  # the whole render, canonical JSON
    "metadata": pa.string(),  # what the user's row said besides, canonical JSON
}


def fixed_columns(row: ManifestRow) -> dict[str, Any]:
    """The values of ``FIXED`` of a picture that is there."""
    spec = json.loads(row.spec)
    return {
        "render": row.render,
        "index": row.image,
        "prompt": spec["prompt"] or "",
        "negative_prompt": spec["negative_prompt"] or "",
        "checkpoint": spec["checkpoint"],
        "mode": spec["mode"],
        "width": row.width,
        "height": row.height,
        "seed": row.seed,
        "num_inference_steps": spec["num_inference_steps"],
        "guidance_scale": spec["guidance_scale"],
        "confidence": row.confidence,
        "numerics": row.numerics,
        "notes": "\n".join(row.notes),
        "sha256": row.sha256,
        "tokens_sha256": row.tokens_sha256,
        "spec": row.spec,
        "metadata": row.metadata or "{}",
    }


def metadata_of(row: ManifestRow) -> dict[str, Any]:
    """What the user's row said besides the parameters, by column."""
    told: dict[str, Any] = json.loads(row.metadata or "{}")
    return told


def user_columns(rows: Sequence[ManifestRow], taken: Sequence[str]) -> dict[str, pa.Array]:
    """The users' own columns: of numbers, texts or lists where all their values agree, else JSON.

    Args:
        taken: names that other columns have; such a column is only in ``metadata``.
    """
    told = [metadata_of(row) for row in rows]
    names = sorted({name for one in told for name in one} - set(taken))
    return {name: _array([one.get(name) for one in told]) for name in names}


def _array(values: Sequence[Any]) -> pa.Array:
    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError):  # of several kinds
        array = None
    if array is not None:
        is_list = pa.types.is_list(array.type)
        kind = array.type.value_type if is_list else array.type
        if not pa.types.is_nested(kind) and not pa.types.is_null(kind):
            return array
    texts = [one if one is None or isinstance(one, str) else json.dumps(one) for one in values]
    return pa.array(texts, pa.string())
