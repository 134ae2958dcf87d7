"""Job files: what to render, with which options, and which values are swept, in YAML or JSON."""

import io
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from farm.cli.columns import Columns
from farm.cli.input_files import JOB_SUFFIXES, Reading, read_files, read_object
from farm.cli.parse_values import parse_values
from farm.cli.selection import Selection
from farm.errors import InvalidInput
from farm.job import OPTIONS
from farm.spec import FILE_FIELDS, PARAMETERS
from farm_client.inputs import ADAPTERS, adapters_from, asset_id, is_url
from farm_client.ndjson import Line, read_lines
from farm_client.sweep import Sweep

MAX_BYTES = 16 * 2**20
_RENDERS = ("input", "prompts", "renders")
_KEYS = (
    *_RENDERS, "input_format", "columns", "limit", "sample", "sample_seed", "defaults", "matrix",
    "zip", "on_error", *OPTIONS,
)  # fmt: skip
_MARKS = frozenset({*_RENDERS, "matrix", "zip", "defaults"})  # one makes a JSON object a job


class JobFile(NamedTuple):
    """Everything that a job file says; the flags of the command line come on top of it."""

    lines: Iterator[Line]
    options: dict[str, Any]
    defaults: dict[str, Any]
    sweep: Sweep
    selection: Selection
    on_error: str | None


def read_job_file(name: str, reading: Reading) -> JobFile | None:
    """The job in a file; None for a ``.json`` file of renders.

    Relative paths are meant from the file's folder.

    Raises:
        InvalidInput: it cannot be read, or a key or a value is wrong.
    """
    path = Path(name)
    if path.suffix.lower() in JOB_SUFFIXES:
        data = _yaml(path)
    elif path.suffix.lower() == ".json" and (found := _json_job(path)) is not None:
        data = found
    else:
        return None
    if not isinstance(data, Mapping):
        raise InvalidInput(
            f"{name} holds {type(data).__name__}, not a job",
            field="file",
            hint="write keys such as prompts, defaults and matrix",
        )
    for key in data:
        if key not in _KEYS:
            hint = "parameters of all renders go into defaults" if key in PARAMETERS else None
            raise InvalidInput(
                f"{name}: unknown key", field=str(key)[:60],
                hint=hint or f"known are {', '.join(_KEYS)}",
            )  # fmt: skip
    base = path.resolve().parent
    return JobFile(
        _lines(data, base, reading),
        {name: data[name] for name in OPTIONS if data.get(name) is not None},
        _from_folder(_mapping(data, "defaults"), base),
        Sweep.parse(_axes(data, "matrix", base), _axes(data, "zip", base)),
        Selection(
            _count(data, "limit"), _count(data, "sample"), _count(data, "sample_seed", least=0)
        ),
        data.get("on_error"),
    )


def _lines(data: Mapping[str, Any], base: Path, reading: Reading) -> Iterator[Line]:
    given = [key for key in _RENDERS if data.get(key) is not None]
    if len(given) > 1:
        raise InvalidInput(f"give {given[0]} or {given[1]}, not both", field=given[1])
    if not given:
        return read_lines([{}])  # the sweep or the defaults have the prompt
    if given == ["input"]:
        names = data["input"]
        names = [names] if isinstance(names, str) else names
        columns = _mapping(data, "columns")
        reading = reading._replace(
            kind=reading.kind or data.get("input_format"),
            columns=reading.columns
            or Columns.parse([f"{name}={column}" for name, column in columns.items()]),
        )
        return read_files([str(base / name) for name in _list(names, "input")], reading)
    for key in ("columns", "input_format"):
        if data.get(key) is not None:
            raise InvalidInput("only an input has that", field=key)
    lines = read_lines(_list(data[given[0]], given[0]))
    return (line._replace(base=base) for line in lines)


def _yaml(path: Path) -> Any:
    import yaml

    class Strict(yaml.SafeLoader):  # type: ignore[misc]
        """Refuses a key that appears twice, of which YAML keeps the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            seen = set()
            for key, _ in node.value:
                name = key.value if isinstance(key, yaml.ScalarNode) else id(key)
                if name in seen:
                    raise InvalidInput(
                        f"the key {str(name)[:60]!r} appears twice",
                        field="file",
                        line=key.start_mark.line + 1,
                        column=key.start_mark.column + 1,
                    )
                seen.add(name)
            return dict(super().construct_mapping(node, deep))

    try:
        return yaml.load(_content(path), Strict)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InvalidInput(
            f"{path} is not YAML: {said}",
            field="file",
            line=mark.line + 1 if mark else None,
            column=mark.column + 1 if mark else None,
        ) from None


def _json_job(path: Path) -> Any:
    """The object in a JSON file, if it is a job and not a render or several."""
    content = _content(path)
    if not content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return None
    try:
        data = read_object(io.BytesIO(content))
    except InvalidInput:
        return None  # lines of renders, or broken: their reader says it
    return data if isinstance(data, Mapping) and _MARKS & data.keys() else None


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InvalidInput(f"there is no file {path}", field="file") from None
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", field="file") from None
    return content if len(content) <= MAX_BYTES else b""


def _axes(data: Mapping[str, Any], key: str, base: Path) -> dict[str, Any] | None:
    given = _mapping(data, key)
    axes: dict[str, Any] = {}
    for name, values in given.items():
        if isinstance(values, str) and name in PARAMETERS:
            values = parse_values(name, [values])
        axes[name] = values if isinstance(values, list) else [values]
        if name in (*FILE_FIELDS, ADAPTERS):
            axes[name] = [_from_folder({name: value}, base)[name] for value in axes[name]]
    return axes


def _from_folder(parameters: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Paths in the job file, which is in this folder."""
    found = {
        name: str(base / value)
        if name in FILE_FIELDS and isinstance(value, str) and not (asset_id(value) or is_url(value))
        else value
        for name, value in parameters.items()
    }
    if ADAPTERS in found:
        found[ADAPTERS] = adapters_from(base, found[ADAPTERS])
    return found


def _mapping(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidInput(f"is {type(value).__name__}, not values by name", field=key)
    return {str(name): one for name, one in value.items()}


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidInput(f"is {type(value).__name__}, not a list", field=key)
    return value


def _count(data: Mapping[str, Any], key: str, least: int = 1) -> int | None:
    value = data.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        message = f"must be a whole number from {least} on; got {value!r}"
        raise InvalidInput(message[:120], field=key)
    return value
