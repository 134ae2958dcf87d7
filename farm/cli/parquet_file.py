"""Rows of Parquet files, those of Hugging Face ``datasets`` among them."""

import ctypes
import math
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from farm.cli.columns import Columns
from farm.cli.parse_values import parse_value
from farm.errors import InvalidInput
from farm.metadata import METADATA
from farm.spec import FILE_FIELDS, PARAMETERS, Form
from farm_client.inputs import ADAPTERS
from farm_client.ndjson import Line, bad_line

BATCH_ROWS = 256  # pictures may stand in them
BUFFER_BYTES = 1 << 20  # read at a time; else a group of rows is, which may be the whole file

Note = Callable[[str], None]


def parquet_lines(file: Any, name: str, columns: Columns, note: Note) -> Iterator[Line]:
    """The rows of a Parquet file; a line's column is the number of its column.

    A column of pictures may hold bytes, paths, or the struct ``{bytes, path}`` of ``datasets``.

    Raises:
        InvalidInput: it is not a Parquet file, or its columns cannot be used.
    """
    pa, table = _opened(file, name)
    header = [str(title) for title in table.schema_arrow.names]
    found = columns.table(header)
    binary = [
        t for place, t in found.kept.items() if _is_binary(pa, table.schema_arrow[place].type)
    ]
    if binary:
        note(f"{name}: columns of bytes are not kept: {', '.join(t[:40] for t in binary)}")
    fields = {header[place]: parameter for place, parameter in found.parameters.items()}
    kept = {header[place]: title for place, title in found.kept.items() if title not in binary}
    floats = {one.name for one in table.schema_arrow if pa.types.is_float32(one.type)}
    places = {parameter: place + 1 for place, parameter in found.parameters.items()}

    def lines() -> Iterator[Line]:
        number = 0
        try:
            for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=[*fields, *kept]):
                for row in batch.to_pylist():
                    number += 1
                    row = {k: _shortest(v) if k in floats else v for k, v in row.items()}
                    yield _line(number, row, fields, kept, places)
        except (pa.ArrowException, OSError) as error:
            raise InvalidInput(
                f"{name} is damaged: {error}"[:200], field="file", line=number + 1
            ) from None

    if kept:
        note(f"{name}: kept as metadata: {', '.join(title[:40] for title in kept.values())}")
    return lines()


def _opened(file: Any, name: str) -> tuple[Any, Any]:
    """The module pyarrow, and the file."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InvalidInput(
            f"{name}: parquet files need pyarrow",
            field="file",
            hint="pip install pyarrow, or use .jsonl",
        ) from None
    try:
        return pa, pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise InvalidInput(f"{name} is not a parquet file: {error}"[:200], field="file") from None


def _is_binary(pa: Any, kind: Any) -> bool:
    """Whether there are bytes in a type, however deep."""
    types = pa.types
    if types.is_dictionary(kind):
        return _is_binary(pa, kind.value_type)
    plain = (types.is_binary, types.is_large_binary, types.is_binary_view)
    return any(is_one(kind) for is_one in (*plain, types.is_fixed_size_binary)) or any(
        _is_binary(pa, kind.field(place).type) for place in range(kind.num_fields)
    )


def _line(
    number: int,
    row: Mapping[str, Any],
    fields: Mapping[str, str],
    kept: Mapping[str, str],
    places: Mapping[str, int],
) -> Line:
    data: dict[str, Any] = {}
    try:
        for title, parameter in fields.items():
            value = _value(parameter, row[title])
            if value is not None:
                data[parameter] = value
    except InvalidInput as error:
        return bad_line(number, error, places[error.field or ""])
    own = {title: _plain(row[name]) for name, title in kept.items()}
    own = {title: value for title, value in own.items() if value is not None}
    if own:
        data[METADATA] = own
    return Line(number, "", columns=places, data=data)


def _value(parameter: str, value: Any) -> Any:
    if parameter in FILE_FIELDS:
        return _picture(value)
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise InvalidInput("is not UTF-8", field=parameter) from None
    if PARAMETERS[parameter].form is Form.ADAPTERS:
        return _adapters(value)
    if isinstance(value, Decimal) and value.is_finite():
        value = int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        raise InvalidInput(
            f"must be {PARAMETERS[parameter].wanted}; got {value}",
            field=parameter,
            hint="leave the cell empty (null) for the default",
        )
    if PARAMETERS[parameter].form in (Form.PAIR, Form.NUMBERS) and isinstance(value, list):
        return [_value(parameter, one) for one in value]
    return value


def _adapters(value: Any) -> Any:
    """Text, as in other tables, or a list of structs, in which a scale may be null."""
    if isinstance(value, str):
        return parse_value(ADAPTERS, value)
    if not isinstance(value, list):
        return value
    return [
        {key: one for key, one in given.items() if one is not None}
        if isinstance(given, Mapping)
        else given
        for given in value
    ]


def _picture(value: Any) -> Any:
    """Bytes, or a path; the column ``image`` of ``datasets`` may have either beside the other."""
    if isinstance(value, Mapping) and {"bytes", "path"} & value.keys():
        return value.get("path") if value.get("bytes") is None else value["bytes"]
    return value


def _shortest(value: float | None) -> float | None:
    """A number of 32 bits as it was written: 7.3 and not 7.300000190734863."""
    if value is None or not math.isfinite(value):
        return value
    digits = (float(f"{value:.{count}g}") for count in range(6, 10))
    return next(short for short in digits if ctypes.c_float(short).value == value)


def _plain(value: Any) -> Any:
    """A value that JSON has words for; None where there is nothing to keep."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        if not value.is_finite():
            return None
        # An id of twenty digits is a decimal without places; a float would be another one.
        return float(value) if "." in f"{value:f}" else int(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, list | tuple):  # a map is a list of pairs
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if value is None or isinstance(value, str | int):
        return value
    return str(value)
