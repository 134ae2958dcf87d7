"""Rows of CSV and TSV files, read strictly."""

import csv
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any, Self

from farm.cli.columns import Columns, Table
from farm.cli.parse_values import parameter_named, parse_value
from farm.errors import FarmError, InvalidInput
from farm.job import MAX_LINE_BYTES
from farm.metadata import METADATA
from farm.spec import PARAMETERS, Form
from farm_client.ndjson import Line, bad_line, not_utf8

DELIMITERS = (",", ";", "\t")
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_DECIMAL_COMMA = re.compile(r"\s*-?\d+,\d+\s*")
_UNCLOSED = "unexpected end of data"  # what csv says of a file that ends inside quotes
_TOO_LONG = "field larger than"


def table_lines(
    file: IO[bytes], name: str, kind: str, columns: Columns
) -> tuple[Iterator[Line], Table]:
    """The rows of a table, and its columns; a line's column is the number of its cell."""
    csv.field_size_limit(2 * MAX_LINE_BYTES)
    rows = _Rows(short_lines(file), name, kind, columns)
    header = rows.header
    if not header:
        raise InvalidInput(f"{name} has no header line", field="file", line=1)
    table = columns.table(header)
    return _lines(rows, table, len(header)), table


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


class _Rows:
    """Cells of a row with the number of its first line, or what is wrong with it."""

    def __init__(self, raw: Iterator[bytes], name: str, kind: str, columns: Columns) -> None:
        self._name = name
        self._skipped = 0  # lines before the header
        lines = _decoded(raw)
        first = next(lines, "")
        self.delimiter = "\t" if kind == "tsv" else ","
        if kind == "csv" and (asked := re.fullmatch(r"sep=(.)", first.strip("\r\n"))):
            self.delimiter, self._skipped = asked[1], 1
            first = next(lines, "")
        elif kind == "csv":
            self.delimiter = _delimiter(first, columns)
        lines = _before(first, lines)
        self._reader: Any = (
            TabRows(lines)
            if kind == "tsv"
            else csv.reader(lines, delimiter=self.delimiter, strict=True)
        )
        try:
            self.header = [title.strip("\r\n") for title in next(self._reader, [])]
        except csv.Error as error:
            raise self._error(error).at(1 + self._skipped) from None

    def __iter__(self) -> Iterator[tuple[int, list[str] | FarmError]]:
        while True:
            number = self._reader.line_num + 1 + self._skipped
            try:
                row = next(self._reader, None)
            except csv.Error as error:
                wrong = self._error(error)
                if str(error).startswith(_TOO_LONG):  # what follows may be inside quotes
                    raise wrong.at(number) from None
                yield number, wrong
                continue
            if row is None:
                return
            yield number, row

    def _error(self, error: csv.Error) -> InvalidInput:
        last = self._reader.line_num + self._skipped
        if str(error) == _UNCLOSED:
            message = f"a quote is never closed; the rows up to line {last} are inside it"
        elif str(error).startswith(_TOO_LONG):
            message = f"{self._name}: a cell has more than {csv.field_size_limit():,} characters"
        else:
            message = f"a quoted cell continues after its closing quote in line {last}"
        return InvalidInput(
            message, field="row", hint="close each quote, and double those inside a cell"
        )


def _lines(rows: _Rows, table: Table, width: int) -> Iterator[Line]:
    places = {parameter: place + 1 for place, parameter in table.parameters.items()}
    places |= {title: place + 1 for place, title in table.kept.items() if title not in places}
    for number, row in rows:
        if isinstance(row, FarmError):
            yield bad_line(number, row)
        elif not any(cell.strip() for cell in row):
            continue
        elif len(row) != width:
            wrong = InvalidInput(f"has {len(row)} cells, the header {width}", field="row")
            yield bad_line(number, wrong)
        else:
            try:
                data = _values(row, table, rows.delimiter)
            except InvalidInput as error:
                yield bad_line(number, error, places.get(error.field or "", 1))
            else:
                yield Line(number, "", columns=places, data=data)


def _values(row: list[str], table: Table, delimiter: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for place, parameter in table.parameters.items():
        text = row[place]
        if text == "" and parameter != "prompt":
            continue
        _check_text(text, parameter)
        if delimiter == ";" and PARAMETERS[parameter].form is Form.NUMBER:
            text = text.replace(",", ".") if _DECIMAL_COMMA.fullmatch(text) else text
        found[parameter] = parse_value(parameter, text)
    own: Mapping[str, str] = {title: row[place] for place, title in table.kept.items()}
    for title, text in own.items():
        _check_text(text, title)
    own = {title: text for title, text in own.items() if text != ""}
    return {**found, METADATA: own} if own else found


def _check_text(text: str, field: str) -> None:
    if not text.isascii() and any("\udc80" <= character <= "\udcff" for character in text):
        raise not_utf8(field)


def _delimiter(header: str, columns: Columns) -> str:
    """The one that makes a column of prompts; spreadsheets in much of Europe write semicolons."""
    for delimiter in DELIMITERS:
        try:
            titles = next(csv.reader([header], delimiter=delimiter), [])
        except csv.Error:
            continue
        found = {columns.chosen.get(title.strip()) or parameter_named(title) for title in titles}
        if found & {"prompt", "embeds"}:
            return delimiter
    return max(DELIMITERS, key=header.count)


def _decoded(raw: Iterator[bytes]) -> Iterator[str]:
    for number, line in enumerate(raw):
        if number == 0:
            line = line.removeprefix(b"\xef\xbb\xbf")
        yield line.decode(errors="surrogateescape")


def _before(first: str, lines: Iterator[str]) -> Iterator[str]:
    if first:
        yield first
    yield from lines


def short_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines of a bounded length; the rest of a longer one is skipped, and the farm refuses
    what is left as too long a prompt."""
    while part := file.readline(MAX_LINE_BYTES + 2):
        kept = part
        while not part.endswith(b"\n") and (part := file.readline(MAX_LINE_BYTES)):
            pass
        yield kept
