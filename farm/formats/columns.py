"""What stands beside a picture in a data set: the same columns in every format of shards.

No column depends on the job or the attempt that made a picture, so that the same renders give the
same shards in another job, on another farm, and in ``farm render``.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic_core import from_json

from farm.formats.manifest import ManifestRow

# No value is null or a list: both can be empty in the first rows of a data set, and readers that
# guess types from those would guess wrong.
_COLUMNS: Mapping[str, tuple[pa.DataType, str]] = {
    "render": (pa.int64(), "index of the render in its job"),
    "index": (pa.int32(), "of the picture in its render"),
    "prompt": (pa.string(), ""),
    "negative_prompt": (pa.string(), ""),
    "checkpoint": (pa.string(), "id and revision"),
    "mode": (pa.string(), "text2img, img2img or inpaint"),
    "width": (pa.int32(), "pixels"),
    "height": (pa.int32(), "pixels"),
    "seed": (pa.uint64(), "of this very picture"),
    "num_inference_steps": (pa.int32(), ""),
    "guidance_scale": (pa.float64(), ""),
    "confidence": (pa.float64(), "mean probability of its tokens, when each was fixed"),
    "numerics": (pa.string(), "class: inside one, the same spec gives the same tokens"),
    "notes": (pa.string(), "what to know of it, a line each, such as a prompt that was cut"),
    "sha256": (pa.string(), "of the picture file, or of the tokens where only they are stored"),
    "tokens_sha256": (pa.string(), "of the VQ token ids: uint16, little endian, row by row"),
    "spec": (pa.string(), "the whole render, canonical JSON"),
    "metadata": (pa.string(), "what the user's row said besides, canonical JSON"),
}
FIXED: Mapping[str, pa.DataType] = {name: kind for name, (kind, _) in _COLUMNS.items()}
MEANINGS: Mapping[str, str] = {name: meaning for name, (_, meaning) in _COLUMNS.items()}


def fixed_columns(row: ManifestRow) -> dict[str, Any]:
    """The values of ``FIXED`` of a picture that is there."""
    spec = from_json(row.spec)
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
    told: dict[str, Any] = {} if row.metadata is None else json.loads(row.metadata)
    return told


def column_types(told: Iterable[Mapping[str, Any]]) -> dict[str, pa.DataType]:
    """The types of the users' columns, by name: numbers, texts or lists of them where all values
    of a column agree, else JSON text."""
    kinds: dict[str, set[pa.DataType]] = {}
    for one in told:
        for name, value in one.items():
            kinds.setdefault(name, set()).add(_type(value))
    common = {name: _common(found) for name, found in sorted(kinds.items())}
    return {name: pa.string() if _unknown(kind) else kind for name, kind in common.items()}


def user_columns(
    rows: Sequence[ManifestRow], types: Mapping[str, pa.DataType], taken: Collection[str]
) -> dict[str, pa.Array]:
    """The users' own columns.

    Args:
        types: of the columns, as ``column_types`` gives them for these rows or for more.
        taken: names that other columns have; such a column is only in ``metadata``.
    """
    told = [metadata_of(row) for row in rows]
    return {
        name: pa.array([typed(one.get(name), kind) for one in told], kind)
        for name, kind in types.items()
        if name not in taken
    }


def typed(value: Any, kind: pa.DataType) -> Any:
    """A value as its column holds it."""
    if value is None or (pa.types.is_string(kind) and isinstance(value, str)):
        return value
    if pa.types.is_floating(kind):
        return float(value)  # Arrow refuses integers that it would have to round
    if pa.types.is_list(kind):
        return [typed(one, kind.value_type) for one in value]
    return json.dumps(value, ensure_ascii=False) if pa.types.is_string(kind) else value


_JSON = pa.map_(pa.string(), pa.null())  # stands for what no column holds but one of JSON texts


def _unknown(kind: pa.DataType) -> bool:
    """Of values that are all missing or empty, or that only JSON can hold."""
    return kind in (pa.null(), _JSON, pa.list_(pa.null()))


def _type(value: Any) -> pa.DataType:
    match value:
        case None:
            return pa.null()
        case bool():
            return pa.bool_()
        case int():
            return pa.int64() if -(2**63) <= value < 2**63 else _JSON
        case float():
            return pa.float64()
        case str():
            return pa.string()
        case list():
            kind = _common({_type(one) for one in value})
            return _JSON if pa.types.is_nested(kind) else pa.list_(kind)
    return _JSON


def _common(kinds: set[pa.DataType]) -> pa.DataType:
    """The type that holds values of all of these."""
    kinds = kinds - {pa.null()}
    if len(kinds) <= 1:
        return kinds.pop() if kinds else pa.null()
    if kinds == {pa.int64(), pa.float64()}:
        return pa.float64()
    if all(pa.types.is_list(kind) for kind in kinds):
        kind = _common({kind.value_type for kind in kinds})
        return _JSON if pa.types.is_nested(kind) else pa.list_(kind)
    return _JSON
