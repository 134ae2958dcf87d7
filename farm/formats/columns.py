"""What stands beside a picture in a data set: the same columns in every format of shards.

No column depends on the job or the attempt that made a picture, so that the same renders give the
same shards in another job, on another farm, and in ``farm render``.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic_core import from_json

from farm.formats.manifest import ManifestColumns, ManifestRow

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


def fixed_columns(rows: Sequence[ManifestRow]) -> dict[str, Sequence[Any]]:
    """The values of ``FIXED`` of pictures that are there, by column."""
    told = ManifestColumns.of(rows)
    if told.specs_read:
        prompts, specs = told.column("prompt"), told.column("common")
    else:
        prompts, specs = _specs(told.column("spec"))
    return {
        "render": told.column("render"),
        "index": told.column("image"),
        "prompt": [prompt or "" for prompt in prompts],
        "negative_prompt": [spec["negative_prompt"] or "" for spec in specs],
        "checkpoint": [spec["checkpoint"] for spec in specs],
        "mode": [spec["mode"] for spec in specs],
        "width": told.column("width"),
        "height": told.column("height"),
        "seed": told.column("seed"),
        "num_inference_steps": [spec["num_inference_steps"] for spec in specs],
        "guidance_scale": [spec["guidance_scale"] for spec in specs],
        "confidence": told.column("confidence"),
        "numerics": told.column("numerics"),
        "notes": ["\n".join(notes) for notes in told.column("notes")],
        "sha256": told.column("sha256"),
        "tokens_sha256": told.column("tokens_sha256"),
        "spec": told.column("spec"),
        "metadata": [metadata or "{}" for metadata in told.column("metadata")],
    }


def fixed_values(rows: Sequence[ManifestRow]) -> Iterator[dict[str, Any]]:
    """The same, picture by picture."""
    columns = fixed_columns(rows)
    return (
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    )


def _specs(texts: Sequence[str]) -> tuple[Sequence[str | None], Sequence[Mapping[str, Any]]]:
    """The prompts of specs, and what else each says besides its seed.

    Most of the specs of a task differ in these two, so what stands around them is parsed once.
    Quotes within a value are escaped: what begins with one is found in its place and nowhere else.
    """
    prompts, kinds = [], []
    for text in texts:
        before, _, rest = text.partition(',"prompt":')
        prompt, _, rest = rest.partition(',"rng":')
        prompts.append(prompt)
        kinds.append((before, rest.partition(',"strength":')[2]))
    try:
        told = from_json(f"[{','.join(prompts)}]")
    except ValueError:
        told = []
    if len(told) != len(texts):  # not as this version writes them
        specs = [from_json(text) for text in texts]
        return [spec["prompt"] for spec in specs], specs
    shared = {kind: from_json(text) for kind, text in dict(zip(kinds, texts, strict=True)).items()}
    return told, [shared[kind] for kind in kinds]


def user_values(metadata: str | None) -> dict[str, Any]:
    """What a user's row said besides the parameters, by column."""
    told: dict[str, Any] = {} if metadata is None else json.loads(metadata)
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
    told: Sequence[Mapping[str, Any]], types: Mapping[str, pa.DataType], taken: Collection[str]
) -> dict[str, pa.Array]:
    """The users' own columns.

    Args:
        told: what ``user_values`` gives for each row.
        types: of the columns, as ``column_types`` gives them for these rows or for more.
        taken: names that other columns have; such a column is only in ``metadata``.
    """
    return {
        name: pa.array([typed(one.get(name), kind) for one in told], kind)
        for name, kind in types.items()
        if name not in taken
    }


def own_values(metadata: str | None, types: Mapping[str, pa.DataType]) -> dict[str, Any]:
    """A row's value in each of these columns; None where it has none."""
    told = user_values(metadata)
    return {name: typed(told.get(name), kind) for name, kind in types.items()}


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
