"""Files of renders, by their names: lines of JSON, tables, Parquet and plain prompts."""

import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from farm import strict_json
from farm.cli.columns import Columns
from farm.cli.compressed import BUFFER, SUFFIXES, decompressed, with_newlines
from farm.cli.parquet_file import parquet_lines
from farm.cli.table_file import short_lines, table_lines
from farm.errors import InvalidInput, TooLarge
from farm_client.ndjson import Line, bad_line, not_utf8, parsed, read_lines, without_mark

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
JOB_SUFFIXES = (".yaml", ".yml")
STDIN = "-"
MAX_JSON_BYTES = 16 * 2**20  # of one JSON object; arrays and lines have limits of their own


class Reading(NamedTuple):
    """How files are read."""

    kind: str | None = None  # one of FORMAT_NAMES; else by the name, or by what standard input is
    columns: Columns = Columns()
    note: Callable[[str], None] = lambda _: None  # told once of each file what a user should know


def looks_like_file(text: str) -> bool:
    """Whether a word on the command line means a file and not a prompt."""
    if text == STDIN:
        return True
    path = Path(text)
    try:
        known = _kind(path) is not None or path.suffix.lower() in JOB_SUFFIXES
        spaced = any(character.isspace() for character in text)
        return bool(text) and ((known and not spaced) or path.exists())
    except (OSError, ValueError):  # a prompt longer than a file name can be
        return False


def read_files(names: Sequence[str], reading: Reading) -> Iterator[Line]:
    """The rows of files, of the files in folders, and of ``-`` for standard input, one after the
    other. What is wrong with a name is raised here, and not when its turn comes."""
    if reading.kind is not None and reading.kind not in FORMAT_NAMES:
        raise InvalidInput(
            f"unknown file format {reading.kind!r}",
            field="--input-format",
            hint=f"known are {', '.join(FORMAT_NAMES)}",
        )
    files = [file for name in names for file in _files(name, reading)]
    if len(files) == 1:
        return _read(files[0], reading)
    for file in files:
        if file != STDIN:
            _open(Path(file)).close()
            _kind_of(file, reading)
    return (line._replace(file=file) for file in files for line in _read(file, reading))


def _files(name: str, reading: Reading) -> list[str]:
    """The file itself, or those in a folder, in the order of their names."""
    path = Path(name)
    if name == STDIN or not os.path.isdir(name):  # of any length
        return [name]
    found, others = [], 0
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        for file in sorted(one for one in files if not one.startswith(".")):
            if _kind(Path(file)) is None:
                others += 1
            else:
                found.append(str(Path(folder) / file))
    if not found:
        raise InvalidInput(
            f"there is no file of renders in the folder {name}",
            field="file",
            hint=f"known are {' '.join(FORMATS)}; to draw the word: --prompt {name}",
        )
    if others:
        reading.note(f"{name}: {others:,} other files are left out")
    return found


def _kind(path: Path) -> str | None:
    if path.suffix.lower() in SUFFIXES:
        path = path.with_suffix("")
    return FORMATS.get(path.suffix.lower())


def _kind_of(name: str, reading: Reading) -> str:
    kind = reading.kind or _kind(Path(name))
    if kind is None:
        raise InvalidInput(
            f"{name} is a file of an unknown format",
            field="file",
            hint=f"known are {' '.join(FORMATS)}; or say --input-format; "
            f"to draw the words: --prompt {name!r}",
        )
    return kind


def _read(name: str, reading: Reading) -> Iterator[Line]:
    if name == STDIN:
        file = decompressed(_standard_input(), "standard input")
        kind, base = reading.kind or _sniff(file), Path.cwd()
    else:
        path = Path(name)
        plain = _open(path)
        kind, base = _kind_of(name, reading), path.resolve().parent
        file = decompressed(plain, name)
        if kind == "parquet" and file is not plain:
            raise InvalidInput(
                f"{name}: a compressed parquet file cannot be read in place",
                field="file",
                hint="unpack it; parquet files are compressed inside",
            )
    lines = _lines(file, name, kind, reading, base)
    return (line if line.base is base else line._replace(base=base) for line in lines)


def _lines(
    file: io.BufferedReader, name: str, kind: str, reading: Reading, base: Path
) -> Iterator[Line]:
    if kind == "parquet":
        whole = _spooled(file) if name == STDIN else file
        return parquet_lines(whole, name, reading.columns, reading.note)
    if not file.peek(1):
        raise InvalidInput(f"{name} is empty", field="file")
    without_mark(file.peek(4)[:4])
    file = with_newlines(file)
    if kind == "txt":
        if reading.columns:
            raise InvalidInput("a text file has no columns", field="--column")
        return _prompts(file)
    if kind in ("csv", "tsv"):
        lines, table = table_lines(file, name, kind, reading.columns)
        if table.kept:
            shown = ", ".join(title[:40] for title in table.kept.values())
            reading.note(f"{name}: kept as metadata: {shown}")
        return lines
    lines = _json(file) if kind == "json" else read_lines(file, base)
    return _renamed(lines, reading.columns) if reading.columns else lines


def _open(path: Path) -> io.BufferedReader:
    try:
        return io.BufferedReader(io.FileIO(path), BUFFER)
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
        return io.BufferedReader(io.FileIO(sys.stdin.fileno(), closefd=False), BUFFER)
    except (OSError, ValueError):
        raise closed from None


def _sniff(file: io.BufferedReader) -> str:
    start = file.peek(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"PAR1"):
        return "parquet"
    return "jsonl" if start[:1] in (b"{", b"[") else "txt"


def _spooled(file: IO[bytes]) -> IO[bytes]:
    """A pipe as a file that can be read from its end, where Parquet has its table of contents."""
    whole = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as its reader
    while part := file.read(2**20):
        whole.write(part)
    whole.seek(0)
    return whole


def _json(file: io.BufferedReader) -> Iterator[Line]:
    """An array, lines, or one object spread over lines."""
    start = file.peek(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    first = start.split(b"\n", 1)[0].strip()
    if not start.startswith(b"{") or first.endswith(b"}"):
        return read_lines(file)
    return read_lines([read_object(file)])


def read_object(file: IO[bytes]) -> Any:
    """One JSON value in a file of its own."""
    raw = file.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise TooLarge("the object is too large; write one render a line", field="file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise not_utf8("json").at(line) from None
    return strict_json.loads(text, line=1)


def _renamed(lines: Iterator[Line], columns: Columns) -> Iterator[Line]:
    for line in lines:
        if line.error is None and line.data is None:
            line = parsed(line)
        if line.error is not None or line.data is None:
            yield line
            continue
        places = {columns.chosen.get(k, k): v for k, v in (line.columns or {}).items()}
        yield line._replace(data=columns.row(line.data), columns=places)


def _prompts(file: IO[bytes]) -> Iterator[Line]:
    for number, raw in enumerate(short_lines(file), 1):
        raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        if not raw.strip():
            continue
        try:
            prompt = raw.decode().strip("\r\n")
        except UnicodeDecodeError as error:
            yield bad_line(number, not_utf8("prompt"), error.start + 1)
        else:
            yield Line(number, "", columns={"prompt": 1}, data={"prompt": prompt})
