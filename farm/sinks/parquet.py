"""``parquet`` and ``tokens``: a Parquet file per task.

The first has a column ``image`` as Hugging Face's ``Image`` feature has it, {bytes, path}; the
second a column ``tokens`` of VQ token ids: uint16, little endian, row by row, on a grid that has
the picture's proportions, so 512 bytes for 16 x 16 tokens. The columns of ``farm.formats.columns``
and the user's own follow in both.

That column is neither compressed nor encoded, so that each value lies in the file in one piece and
can be read by itself.
"""

import functools
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from farm.formats.columns import (
    FIXED,
    column_types,
    fixed_columns,
    user_columns,
    user_values,
)
from farm.formats.manifest import ManifestColumns, ManifestRow
from farm.formats.picture_file import Facts, file_name, file_stem, read_facts, token_grid
from farm.job import Format
from farm.sinks.layout import Packed, Unpacked, check_content, refuse_damage
from farm.spec import RenderSpec

ROW_GROUP = 100  # pictures; readers that shuffle take a group at a time
TOKEN_ROW_GROUP = 1000  # a picture's tokens are a hundredth of its file
SEARCHED = 64  # bytes
IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
TOKENS_NAME = "tokens"
_PAYLOADS = ("image.bytes", "tokens")  # paths of the columns with the pictures


class _Table:
    suffix = ".parquet"
    content_type = "application/vnd.apache.parquet"

    def __init__(self, types: Mapping[str, pa.DataType] | None = None) -> None:
        self._types = types  # of the users' columns; by default what fits a shard's own rows


class Parquet(_Table):
    tokens_alone = False

    def file_name(self, render: int, image: int, picture_format: Format) -> str:
        return file_name(render, image, picture_format)

    def pack(self, rows: Sequence[ManifestRow], contents: Sequence[bytes]) -> Packed:
        names = ManifestColumns.of(rows).column("file")
        columns = [pa.array(contents, pa.binary()), pa.array(names, pa.string())]
        images = pa.StructArray.from_arrays(columns, fields=list(IMAGE))
        data = write_table({"image": images}, rows, self._types, ROW_GROUP)
        return Packed(data, _offsets(data, contents))

    def unpack(self, data: bytes) -> Iterator[Unpacked]:
        columns = _read(data, ["render", "index", "sha256", "image"])
        ids = zip(columns["render"], columns["index"], strict=True)
        with refuse_damage():
            contents = [picture["bytes"] for picture in columns["image"]]
            found = zip(ids, _offsets(data, contents), contents, columns["sha256"], strict=True)
            for picture, offset, content, sha256 in found:
                check_content(content, sha256)
                yield Unpacked(picture, offset, content, read_facts(content))


class Tokens(_Table):
    tokens_alone = True

    def file_name(self, render: int, image: int, picture_format: Format) -> str:
        return f"{file_stem(render, image)}.u16"

    def pack(self, rows: Sequence[ManifestRow], contents: Sequence[bytes]) -> Packed:
        tokens = {TOKENS_NAME: pa.array(contents, pa.binary())}
        data = write_table(tokens, rows, self._types, TOKEN_ROW_GROUP)
        return Packed(data, _offsets(data, contents))

    def unpack(self, data: bytes) -> Iterator[Unpacked]:
        facts = ["spec", "numerics", "notes", "confidence"]
        columns = _read(data, ["render", "index", "sha256", *facts, TOKENS_NAME])
        contents = columns[TOKENS_NAME]
        with refuse_damage():
            places = _offsets(data, contents)
            for number, (offset, content) in enumerate(zip(places, contents, strict=True)):
                told = {name: values[number] for name, values in columns.items()}
                check_content(content, told["sha256"])
                picture = told["render"], told["index"]
                yield Unpacked(picture, offset, content, token_facts(told))


def token_facts(told: Mapping[str, Any]) -> Facts:
    """A row of a ``tokens`` shard as the facts of its picture."""
    spec = RenderSpec.model_validate_json(told["spec"])
    return Facts(
        spec,
        told["index"],
        told["numerics"],
        token_grid(told[TOKENS_NAME], spec.height, spec.width),
        tuple(told["notes"].splitlines()),
        told["confidence"],
    )


def write_table(
    payload: Mapping[str, pa.Array],
    rows: Sequence[ManifestRow],
    types: Mapping[str, pa.DataType] | None,
    row_group: int,
) -> bytes:
    """A file with the payload, the fixed columns and the users'; the same rows give the same bytes.

    Args:
        payload: the columns that come first.
        rows: one for each value of them.
        types: of the users' columns; None for what fits these rows.
        row_group: rows of a group.
    """
    rows = ManifestColumns.of(rows)
    told = [user_values(metadata) for metadata in rows.column("metadata")]
    if types is None:
        types = column_types(told)
    fixed = fixed_columns(rows)
    columns = {
        **payload,
        **{name: pa.array(fixed[name], kind) for name, kind in FIXED.items()},
    }
    columns |= user_columns(told, types, columns.keys())
    table = pa.table(columns)
    table = table.replace_schema_metadata({"huggingface": hugging_face(table.schema)})
    paths = _leaves(table.schema)
    others = [path for path in paths if path not in _PAYLOADS]
    out = pa.BufferOutputStream()
    pq.write_table(
        table,
        out,
        version="2.6",
        row_group_size=row_group,
        compression={path: "zstd" if path in others else "none" for path in paths},
        use_dictionary=others,
        write_statistics=others,
        write_page_index=True,
    )
    data: bytes = out.getvalue().to_pybytes()
    return data


def hugging_face(schema: pa.Schema) -> str:
    """The features of a table, as ``datasets`` keeps them in the schema's metadata."""
    features = {field.name: _feature(field.type) for field in schema}
    return json.dumps({"info": {"features": features}})


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if kind == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    return {"dtype": hugging_face_dtype(kind), "_type": "Value"}


def hugging_face_dtype(kind: pa.DataType) -> str:
    """The name that ``datasets`` has for a type of single values."""
    names = {
        pa.float64(): "float64", pa.float32(): "float32", pa.bool_(): "bool", pa.json_(): "json"
    }  # fmt: skip
    return names.get(kind, str(kind))


@functools.lru_cache(maxsize=32)
def _leaves(schema: pa.Schema) -> list[str]:
    """Paths of the columns as the file counts them."""
    empty = io.BytesIO()
    pq.write_table(schema.empty_table(), empty)
    leaves = pq.ParquetFile(pa.BufferReader(empty.getvalue())).schema
    return [leaves.column(number).path for number in range(len(leaves))]


def _offsets(data: bytes, contents: Sequence[bytes]) -> list[int]:
    """Where the contents lie in a file that holds them in this order, as they are.

    Each stands behind its length, in four bytes. What fits into a page mostly follows each other at
    once. Else only the start of a picture is searched for: searching for all of it takes longer
    than writing the file.
    """
    at = data.index(len(contents[0]).to_bytes(4, "little") + contents[0][:SEARCHED]) + 4
    sizes = (len(content) + 4 for content in contents[:-1])
    offsets = list(itertools.accumulate(sizes, initial=at))
    if all(map(data.startswith, contents, offsets)):
        return offsets
    lengths = [len(content).to_bytes(4, "little") for content in contents]
    offsets = []
    at = 0
    for length, content in zip(lengths, contents, strict=True):
        start = length + content[:SEARCHED]
        at = data.index(start, at) + 4
        while not data.startswith(content, at):
            at = data.index(start, at) + 4
        offsets.append(at)
        at += len(content)
    return offsets


def _read(data: bytes, names: list[str]) -> dict[str, list[Any]]:
    """The columns' values.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        table = pq.read_table(pa.BufferReader(data), columns=names)
        return {name: table.column(name).to_pylist() for name in names}
    except (pa.ArrowException, OSError, KeyError, MemoryError) as error:
        raise ValueError("the shard is damaged") from error
