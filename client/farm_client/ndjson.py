"""Many renders from a file or an iterable, one line of NDJSON each, in bounded memory."""

import functools
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from farm import strict_json
from farm.errors import FarmError, InvalidInput, TooLarge
from farm.job import MAX_CALL_PIECES, MAX_LINE_BYTES, MAX_PIECE_LINES
from farm.spec import FILE_FIELDS, RenderRequest
from farm_client.inputs import ADAPTERS, has_files
from farm_client.sweep import Sweep

PIECE_BYTES = 4 * 2**20
MAX_ARRAY_BYTES = 64 * 2**20  # an array must be read whole
_NO_SWEEP = Sweep()
_FILE_MARKS = tuple(f'"{field}"' for field in (*FILE_FIELDS, ADAPTERS))
_ENCODER = json.JSONEncoder(allow_nan=False)  # ASCII: half a surrogate pair has no UTF-8
_ESCAPED_KEY = re.compile(r'\\u[^"]*"\s*:')
_SPACE = re.compile(r"[ \t\r\n]*")


class Line(NamedTuple):
    """One render on its way, and where it stood."""

    number: int  # in the file, or in the iterable; from 1
    text: str  # one line of JSON as it is sent; what is wrong with it, the farm says
    error: FarmError | None = None  # found here; the line is sent as null to keep its place
    columns: Mapping[str, int] | None = None  # by field; else they are looked up in the text
    data: Mapping[str, Any] | None = None  # set as long as the values may still change
    base: Path | None = None  # where its relative paths are meant from
    file: str | None = None  # its name, where lines of several files go together
    defaults: int = 0  # characters of the text that stand in the place of its first one

    def place(self, field: str | None) -> int:
        if field is None:
            return 1
        if self.columns is not None:
            return self.columns.get(field, 1)
        found = _key(field, "{" + self.text[self.defaults :] if self.defaults else self.text)
        return found.start() + 1 if found else 1


def read_lines(source: Any, base: Path | None = None) -> Iterator[Line]:
    """The lines of a source as they stand there: of an open file, or of an iterable.

    Args:
        base: where a file's relative paths are meant from; by default from its folder.
    """
    if isinstance(source, str | bytes | Mapping):
        raise InvalidInput(
            "give an open file or a list of renders",
            field="requests",
            hint="for one prompt there is submit(); for a file, open(path)",
        )
    if hasattr(source, "readline"):
        name = getattr(source, "name", None)
        if base is None and isinstance(name, str) and Path(name).is_file():
            base = Path(name).resolve().parent
        return _file_lines(source, base)
    if not isinstance(source, Iterable):
        raise InvalidInput(f"{type(source).__name__} cannot be iterated over", field="requests")
    return _item_lines(source)


def never_waits(source: Any) -> bool:
    """Whether all that a source gives is there already: a list, or an open file on a disk."""
    if isinstance(source, Sequence):
        return True
    try:
        return stat.S_ISREG(os.fstat(source.fileno()).st_mode)
    except (AttributeError, OSError, ValueError):
        return False


def completed(
    lines: Iterable[Line], defaults: Mapping[str, Any], sweep: Sweep = _NO_SWEEP
) -> Iterator[Line]:
    """Lines as they are sent: with the defaults, once for each combination of the sweep.

    ``data`` is left only in lines whose files are still to be uploaded.
    """
    if not defaults or sweep or has_files(defaults):
        return (done for line in lines for done in _completed(line, defaults, sweep))
    return _behind(lines, defaults)


def _behind(lines: Iterable[Line], defaults: Mapping[str, Any]) -> Iterator[Line]:
    """The defaults stand in front of what a line says, without a look at its values.

    Not if it may name one of them, or a file: the name in quotes is in its text then, or an escaped
    key. What is wrong with such a line is the same with the defaults in front of it.
    """
    names = "|".join(map(re.escape, (*defaults, *FILE_FIELDS, ADAPTERS)))
    named = re.compile(rf'"(?:{names})"').search
    start = _dump(defaults)[:-1] + ", "
    size = len(start)
    for line in lines:
        number, text, error, _, data, base, file, _ = line
        plain = error is None and data is None and text.startswith('{"')
        if plain and not named(text) and not ("\\u" in text and _ESCAPED_KEY.search(text)):
            yield Line(number, start + text[1:], None, None, None, base, file, size)
        else:
            yield from _completed(line, defaults, _NO_SWEEP)


def _completed(line: Line, defaults: Mapping[str, Any], sweep: Sweep) -> Iterator[Line]:
    if line.error is None and line.data is None:
        if not defaults and not sweep and not _may_name_a_file(line.text):
            yield line
            return
        line = parsed(line)
    if line.error is not None or line.data is None:
        yield line
    elif clash := sweep.names & line.data.keys():
        field = min(clash)
        wrong = InvalidInput("is set in the row and swept; give it in one place", field=field)
        yield refused(line, wrong, line.place(field))
    else:
        for values in sweep.combinations():
            yield _written(line, {**defaults, **line.data, **values})


def parsed(line: Line) -> Line:
    """A line of text with its values; one that is not a JSON object stays as it is."""
    try:
        data = strict_json.loads(line.text, line=line.number)
    except InvalidInput:
        return line  # the farm says the same of it
    if not isinstance(data, dict):
        return line
    columns = {field: found.start() + 1 for field in data if (found := _key(field, line.text))}
    return line._replace(text="", data=data, columns=columns)


def pieces(lines: Iterator[Line], limit: int = MAX_PIECE_LINES) -> Iterator[list[Line]]:
    """Groups that are cut at the same places every time."""
    group: list[Line] = []
    size = 0
    for line in lines:
        group.append(line)
        size += len(line.text)
        if len(group) == limit or size >= PIECE_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def together(groups: Iterable[list[Line]]) -> Iterator[list[Line]]:
    """Pieces that go in one call: whole ones, and the last may be shorter. The first goes alone, so
    that the farm can begin."""
    held: list[Line] = []
    size, most = 0, MAX_PIECE_LINES
    for group in groups:
        more = sum(len(line.text) for line in group)
        if held and size + more > PIECE_BYTES:
            yield held
            held, size = [], 0
        held, size = held + group, size + more
        if len(group) < MAX_PIECE_LINES or len(held) == most:
            yield held
            held, size, most = [], 0, MAX_CALL_PIECES * MAX_PIECE_LINES
    if held:
        yield held


def with_data(line: Line, data: Mapping[str, Any]) -> Line:
    """The line with its final values, ready to be sent, or refused for one that JSON has no words
    for."""
    try:
        return line._replace(text=_dump(data), data=None)
    except (TypeError, ValueError) as error:
        field = _not_json(data)
        wrong = InvalidInput(f"cannot be written as JSON: {error}", field=field)
        return refused(line, wrong, line.place(field))


def bad_line(number: int, error: FarmError, column: int = 1) -> Line:
    return Line(number, "null", error.at(number, column))


def refused(line: Line, error: FarmError, column: int = 1) -> Line:
    return line._replace(text="null", data=None, error=error.at(line.number, column))


def _written(line: Line, data: Mapping[str, Any]) -> Line:
    return line._replace(text="", data=data) if has_files(data) else with_data(line, data)


def _not_json(data: Mapping[str, Any]) -> str:
    """The field that JSON has no words for."""
    for field, value in data.items():
        try:
            _dump({"value": value})
        except (TypeError, ValueError):
            return str(field)[:60]
    return "render"


def _may_name_a_file(text: str) -> bool:
    return any(mark in text for mark in _FILE_MARKS)


def _item_lines(items: Iterable[Any]) -> Iterator[Line]:
    for number, item in enumerate(items, 1):
        if isinstance(item, Line):
            yield item
        elif isinstance(item, str):
            yield Line(number, "", data={"prompt": item})
        elif isinstance(item, RenderRequest):
            yield Line(number, "", data=item.model_dump(mode="json", exclude_unset=True))
        elif isinstance(item, Mapping):
            yield Line(number, "", data=dict(item))
        else:
            kind = type(item).__name__
            yield bad_line(number, InvalidInput(f"{kind} is not a render", field="render"))


def _file_lines(file: Any, base: Path | None) -> Iterator[Line]:
    """NDJSON line by line; of a line that is too long nothing but its length is kept."""
    file = getattr(file, "buffer", file)  # a text file would stop at the first wrong byte
    read, number = file.readline, 0
    while part := read(MAX_LINE_BYTES + 2):
        raw = _bytes(part)
        number += 1
        if number == 1:
            raw = without_mark(raw)
            if raw.lstrip().startswith(b"["):
                yield from _array_lines(raw + _bytes(file.read(MAX_ARRAY_BYTES + 1)))
                return
        size = len(raw) if len(raw) <= MAX_LINE_BYTES else _whole_length(raw, file)
        if not raw.strip():
            continue
        if size > MAX_LINE_BYTES:
            yield bad_line(number, _long_line(size), MAX_LINE_BYTES + 1)
            continue
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            column = len(raw[: error.start].decode(errors="replace")) + 1
            yield bad_line(number, not_utf8("json"), column)
            continue
        yield Line(number, text.strip("\r\n"), None, None, None, base)


def _array_lines(raw: bytes) -> Iterator[Line]:
    """The elements of one JSON array, each with the line that it starts on."""
    if len(raw) > MAX_ARRAY_BYTES:
        raise TooLarge(
            f"a JSON array of more than {MAX_ARRAY_BYTES >> 20} MiB",
            field="file",
            hint="write one render a line: jq -c '.[]' FILE > FILE.jsonl",
        )
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        number = raw.count(b"\n", 0, error.start) + 1
        raise not_utf8("json").at(number) from None
    at, number, counted, line_start = text.index("[") + 1, 1, 0, 0
    after_comma = False
    while True:
        at = _skip(text, at)
        number += text.count("\n", counted, at)
        line_start = max(text.rfind("\n", counted, at) + 1, line_start)
        counted = at
        if text[at : at + 1] == "]" and not after_comma:
            break
        if text[at : at + 1] == "]":
            raise _array_error("a comma with nothing after it; remove it", text, at)
        value, end = strict_json.decode(text, at, line=1)
        column = at - line_start + 1
        value = {"prompt": value} if isinstance(value, str) else value
        if isinstance(value, dict):
            columns = dict.fromkeys(value, column)
            yield Line(number, "", data=value, columns=columns)
        else:
            wrong = InvalidInput(f"{type(value).__name__} is not a render", field="render")
            yield bad_line(number, wrong, column)
        at = _skip(text, end)
        after_comma = text[at : at + 1] == ","
        if not after_comma and text[at : at + 1] != "]":
            raise _array_error("expected a comma or ] after this value", text, at)
        at += after_comma
    if text[at + 1 :].strip():
        raise _array_error("unexpected text after the array", text, at + 1)


def _array_error(message: str, text: str, at: int) -> InvalidInput:
    line = text.count("\n", 0, at) + 1
    column = at - (text.rfind("\n", 0, at) + 1) + 1
    return InvalidInput(f"is not JSON: {message}", field="json", line=line, column=column)


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _whole_length(part: bytes, file: Any) -> int:
    """Of the line that begins with this part, without its end; the rest of it is passed over."""
    size = 0
    while part:
        size += len(part)
        if part.endswith(b"\n"):
            return size - 1
        part = _bytes(file.readline(MAX_LINE_BYTES))
    return size


def not_utf8(field: str) -> InvalidInput:
    return InvalidInput(
        "is not UTF-8", field=field, hint="iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW"
    )


def without_mark(raw: bytes) -> bytes:
    """Text without a byte-order mark; other encodings than UTF-8 are refused."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in raw[:4]:
        raise InvalidInput(
            "the file is UTF-16 or UTF-32",
            field="file",
            hint="iconv -f UTF-16 -t UTF-8 FILE > NEW",
        )
    return raw.removeprefix(b"\xef\xbb\xbf")


def _bytes(part: str | bytes) -> bytes:
    return part.encode(errors="surrogatepass") if isinstance(part, str) else part


def _long_line(size: int) -> InvalidInput:
    return TooLarge(
        f"the line has {size:,} bytes; at most {MAX_LINE_BYTES:,} are allowed", field="json"
    )


def _dump(data: Mapping[str, Any]) -> str:
    return _ENCODER.encode(data)


def _key(field: str, text: str) -> re.Match[str] | None:
    return _key_pattern(field).search(text)


@functools.lru_cache(256)  # the rows of a file have the same columns
def _key_pattern(field: str) -> re.Pattern[str]:
    return re.compile(rf'"{re.escape(field)}"\s*:')
