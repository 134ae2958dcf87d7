"""Files of renders: lines of JSON, tables and plain prompts."""

import csv
import io
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from farm import strict_json
from farm.cli.parse_values import parameter_named, parse_value
from farm.errors import InvalidInput, TooLarge
from farm.job import MAX_LINE_BYTES
from farm_client.inputs import FILE_FIELDS, asset_id
from farm_client.ndjson import Line, bad_line, render_line, without_mark

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "txt",
}
FORMAT_NAMES = tuple(dict.fromkeys(FORMATS.values()))
MAX_JSON_BYTES = 16 * 2**20  # of one JSON object; arrays and lines have limits of their own
MAX_COLUMNS = 1000
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


class Source(NamedTuple):
    """Something ``submit_many`` takes, and whether the flags' parameters are in it already."""

    requests: Iterable[Any]
    merged: bool
    ignored: tuple[str, ...] = ()


class Table(NamedTuple):
    """The columns of a table that are parameters, by their place."""

    parameters: Mapping[int, str]
    ignored: tuple[str, ...]


def looks_like_file(text: str) -> bool:
    """Whether a word on the command line means a file and not a prompt."""
    path, spaced = Path(text), any(character.isspace() for character in text)
    try:
        if path.suffix.lower() in FORMATS:
            return not spaced or path.exists()
        return bool(text) and not spaced and (path.is_dir() or ("/" in text and path.exists()))
    except (OSError, ValueError):  # a prompt longer than a file name can be
        return False


def open_source(
    name: str, kind: str | None, column: str | None, defaults: Mapping[str, Any]
) -> Source:
    """A file by its name; ``-`` is standard input."""
    if name == "-":
        file, base = _standard_input(), Path.cwd()
        kind = kind or _sniff(file)
    else:
        path = Path(name)
        file, base = _open(path), path.resolve().parent
        kind = kind or FORMATS.get(path.suffix.lower())
        if kind is None:
            raise InvalidInput(
                f"{name}: unknown kind of file", field="file",
                hint=f"known are {' '.join(FORMATS)}; or say --input-format; a prompt: --prompt",
            )  # fmt: skip
    if kind == "parquet":
        return _parquet(file, column, defaults)
    if not file.peek(1):
        raise InvalidInput(f"{name} is empty", field="file")
    without_mark(file.peek(4)[:4])
    if kind == "json":
        return _json(file)
    if kind == "jsonl":
        return Source(file, merged=False)
    if kind == "txt":
        return Source(_prompts(file, defaults), merged=True)
    return _table(file, name, kind, column, defaults, base)


def _open(path: Path) -> io.BufferedReader:
    try:
        if path.is_dir():
            raise InvalidInput(
                f"{path} is a directory", field="file", hint="name a file; a prompt: --prompt"
            )
        return path.open("rb")
    except FileNotFoundError:
        raise InvalidInput(
            f"there is no file {path}", field="file", hint="to draw these words: --prompt"
        ) from None
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", field="file") from None


def _standard_input() -> io.BufferedReader:
    closed = InvalidInput("standard input is closed", field="file", hint="pipe renders into it")
    if sys.stdin is None or sys.stdin.closed:
        raise closed
    try:
        return io.BufferedReader(io.FileIO(sys.stdin.fileno(), closefd=False))
    except (OSError, ValueError):
        raise closed from None


def _sniff(file: io.BufferedReader) -> str:
    start = file.peek(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    return "jsonl" if start[:1] in (b"{", b"[") else "txt"


def _json(file: io.BufferedReader) -> Source:
    """An array, lines, or one object spread over lines."""
    start = file.peek(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    first = start.split(b"\n", 1)[0].strip()
    if not start.startswith(b"{") or first.endswith(b"}"):
        return Source(file, merged=False)
    raw = file.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise TooLarge("the object is too large; write one render a line", field="file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InvalidInput("is no UTF-8", field="json", line=line) from None
    return Source([strict_json.loads(text, line=1)], merged=False)


def _prompts(file: IO[bytes], defaults: Mapping[str, Any]) -> Iterator[Line]:
    for number, raw in enumerate(_short_lines(file), 1):
        raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        if not raw.strip():
            continue
        try:
            yield render_line(number, {**defaults, "prompt": raw.decode().strip("\r\n")})
        except UnicodeDecodeError as error:
            wrong = InvalidInput("is no UTF-8", field="prompt")
            yield bad_line(number, wrong, error.start + 1)


def _table(
    file: IO[bytes],
    name: str,
    kind: str,
    column: str | None,
    defaults: Mapping[str, Any],
    base: Path,
) -> Source:
    csv.field_size_limit(2 * MAX_LINE_BYTES)
    lines = (raw.decode(errors="surrogateescape") for raw in _short_lines(file))
    rows = TabRows(_unmarked(lines)) if kind == "tsv" else csv.reader(_unmarked(lines))
    try:
        header = next(rows, None)
    except csv.Error as error:
        raise InvalidInput(f"{name}: {error}", field="file", line=1) from None
    if not header:
        raise InvalidInput(f"{name} has no header line", field="file", line=1)
    table = columns_of(header, column)
    return Source(_rows(rows, table, len(header), defaults, base), True, table.ignored)


class TabRows:
    """Rows of tab-separated cells, one a line.

    The format has no quotes, so `"Hi" in red` keeps its own. Spreadsheets quote whole cells all the
    same: a cell that is quoted from end to end, with inner quotes doubled, is taken out of them.
    """

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.line_num = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[str]:
        line = next(self._lines)
        self.line_num += 1
        cells = line.rstrip("\r\n").split("\t")
        return [
            cell[1:-1].replace('""', '"') if _QUOTED.fullmatch(cell) else cell for cell in cells
        ]


def columns_of(header: list[str], column: str | None) -> Table:
    """Which columns are parameters; ``column`` names the one with the prompts."""
    parameters: dict[int, str] = {}
    ignored = []
    for place, title in enumerate(header[:MAX_COLUMNS]):
        if column is not None and title == column:
            parameter: str | None = "prompt"
        else:
            parameter = parameter_named(title)
            if column is not None and parameter == "prompt":
                parameter = None
        if parameter is None:
            ignored.append(title)
        elif parameter in parameters.values():
            raise InvalidInput(
                f"two columns mean {parameter}", field="column", line=1, column=place + 1
            )
        else:
            parameters[place] = parameter
    if "prompt" not in parameters.values() and (column or "embeds" not in parameters.values()):
        shown = ", ".join(title[:40] for title in header[:12])
        raise InvalidInput(
            f"there is no column {(column or 'prompt')!r}; there are: {shown}",
            field="column",
            hint="say which holds the prompts: --column NAME",
        )
    return Table(parameters, tuple(ignored))


def _rows(
    rows: Any, table: Table, width: int, defaults: Mapping[str, Any], base: Path
) -> Iterator[Line]:
    """One render a row; a line's column is the number of its cell."""
    places = {parameter: place + 1 for place, parameter in table.parameters.items()}
    while True:
        number = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield bad_line(number, InvalidInput(str(error), field="row"))
            continue
        if row is None:
            return
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != width:
            wrong = InvalidInput(f"has {len(row)} cells, the header {width}", field="row")
            yield bad_line(number, wrong)
            continue
        data = dict(defaults)
        try:
            for place, parameter in table.parameters.items():
                if row[place] != "" or parameter == "prompt":
                    data[parameter] = _cell(parameter, row[place], base)
        except InvalidInput as error:
            yield bad_line(number, error, places.get(error.field or "", 1))
        else:
            yield render_line(number, data, columns=places)


def _cell(parameter: str, text: str, base: Path) -> Any:
    if any("\udc80" <= character <= "\udcff" for character in text):
        raise InvalidInput("is no UTF-8", field=parameter)
    if parameter in FILE_FIELDS and asset_id(text) is None:
        return str(base / text)
    return parse_value(parameter, text)


def _parquet(file: Any, column: str | None, defaults: Mapping[str, Any]) -> Source:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InvalidInput(
            "parquet files need pyarrow", field="file", hint="pip install pyarrow, or use .jsonl"
        ) from None
    try:
        table = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise InvalidInput(f"is no parquet file: {error}"[:200], field="file") from None
    header = [str(title) for title in table.schema_arrow.names]
    found = columns_of(header, column)

    def lines() -> Iterator[Line]:
        names = [header[place] for place in found.parameters]
        number = 0
        for batch in table.iter_batches(batch_size=1000, columns=names):
            for row in batch.to_pylist():
                number += 1
                data = dict(defaults)
                for place, parameter in found.parameters.items():
                    value = row[header[place]]
                    if isinstance(value, dict) and "bytes" in value:  # an image of `datasets`
                        value = value["bytes"]
                    if value is not None:
                        data[parameter] = value
                yield render_line(number, data)

    return Source(lines(), True, found.ignored)


def _unmarked(lines: Iterator[str]) -> Iterator[str]:
    """Without a byte-order mark, and with what csv cannot take made visible."""
    for number, line in enumerate(lines):
        if number == 0:
            line = (
                line.encode(errors="surrogateescape")
                .removeprefix(b"\xef\xbb\xbf")
                .decode(errors="surrogateescape")
            )
        yield line


def _short_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines of a bounded length; the rest of a longer one is passed over, and the farm refuses
    what is left as too long a prompt."""
    while part := file.readline(MAX_LINE_BYTES + 2):
        kept = part
        while not part.endswith(b"\n") and (part := file.readline(MAX_LINE_BYTES)):
            pass
        yield kept
