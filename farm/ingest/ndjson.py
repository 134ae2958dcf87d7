"""Renders as they come in, one by one, and what was wrong with them."""

import hashlib
import json
import re
from typing import Any, NamedTuple

from farm import strict_json
from farm.errors import FarmError, InvalidInput, TooLarge
from farm.job import MAX_LINE_BYTES


class Entry(NamedTuple):
    """One render as it came in: its value, or what was wrong with the text already."""

    data: Any = None
    error: FarmError | None = None
    line: int | None = None
    text: str = ""


def parse_line(line: bytes, number: int) -> Entry:
    """One line of NDJSON."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        column = len(line[: error.start].decode(errors="replace")) + 1
        wrong = InvalidInput("is not UTF-8", field="json", line=number, column=column)
        return Entry(error=wrong, line=number, text=f"sha256:{hashlib.sha256(line).hexdigest()}")
    try:
        return Entry(strict_json.loads(text, line=number), line=number, text=text)
    except InvalidInput as wrong:
        return Entry(error=wrong, line=number, text=text)


def long_line(number: int, size: int) -> Entry:
    """A line that was not kept: no render is that long."""
    wrong = TooLarge(
        f"the line has {size:,} bytes; at most {MAX_LINE_BYTES:,} are allowed",
        field="json",
        hint="upload pictures as assets",
        line=number,
        column=MAX_LINE_BYTES + 1,
    )
    return Entry(error=wrong, line=number, text=f"{size} bytes")


def placed(error: FarmError, entry: Entry) -> FarmError:
    if entry.line is None or error.line is not None:
        return error
    column = 1
    if error.field and (key := re.search(rf'"{re.escape(error.field)}"\s*:', entry.text)):
        column = key.start() + 1
    return error.at(entry.line, column)


def content_of(entry: Entry) -> bytes:
    text = entry.text or json.dumps(entry.data, sort_keys=True)
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()
