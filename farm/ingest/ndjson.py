"""Renders as they come in, and what was wrong with them."""

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, overload

from farm import strict_json
from farm.errors import FarmError, InvalidInput, TooLarge
from farm.ingest.kinds import Kind, rows_of, rows_of_lines
from farm.job import MAX_LINE_BYTES, MAX_PIECE_LINES


class Entry(NamedTuple):
    """One render as it came in: its value, or what was wrong with the text already."""

    data: Any = None
    error: FarmError | None = None
    line: int | None = None
    text: str = ""


_UNREAD: Any = object()  # in the place of a value that is still in its text


@dataclass(frozen=True, repr=False)
class Entries(Sequence[Entry]):
    """Renders as they came in, by columns; also one by one."""

    values: list[Any]
    errors: list[FarmError | None]
    lines: list[int | None]
    texts: list[str]
    kinds: list[Kind]  # the same object in entries that are known to be alike
    prompts: list[Any]  # None where there is none
    seeds: list[Any]
    own: list[dict[str, Any] | None]  # what else a row has besides parameters

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "Entries":
        if isinstance(entries, Entries):
            return entries
        rows = list(entries)
        values = [row.data for row in rows]
        return cls(
            values,
            [row.error for row in rows],
            [row.line for row in rows],
            [row.text for row in rows],
            *rows_of(values),
        )

    @classmethod
    def joined(cls, parts: "Sequence[Entries]") -> "Entries":
        columns = zip(*(part._columns() for part in parts), strict=True)
        return cls(*([*chain.from_iterable(column)] for column in columns)) if parts else cls.of(())

    @functools.cached_property
    def size(self) -> int:
        """Characters of the texts."""
        return sum(map(len, self.texts))

    def pieces(self) -> "list[Entries]":
        """Whole pieces of a job, and what is left; one without entries where there are none."""
        starts = range(0, max(len(self), 1), MAX_PIECE_LINES)
        return [self[start : start + MAX_PIECE_LINES] for start in starts]

    def content(self) -> bytes:
        """The hashes of all, one after the other."""
        texts = self.texts
        if not all(texts):
            pairs = zip(texts, self.values, strict=True)
            texts = [text or json.dumps(value, sort_keys=True) for text, value in pairs]
        encoded = [text.encode(errors="surrogatepass") for text in texts]
        return b"".join([hashlib.sha256(text).digest() for text in encoded])

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, place: int) -> Entry: ...

    @overload
    def __getitem__(self, place: slice) -> "Entries": ...

    def __getitem__(self, place: int | slice) -> "Entry | Entries":
        if isinstance(place, slice):
            return Entries(*(column[place] for column in self._columns()))
        value, text = self.values[place], self.texts[place]
        if value is _UNREAD:
            value = strict_json.loads(text)
        return Entry(value, self.errors[place], self.lines[place], text)

    def _columns(self) -> tuple[list[Any], ...]:
        return (
            self.values, self.errors, self.lines, self.texts, self.kinds, self.prompts, self.seeds,
            self.own,
        )  # fmt: skip


def parse_lines(block: bytes, first: int, *, before: int = 0) -> Entries:
    """Lines of NDJSON; blank ones are left out.

    Args:
        first: number of the first line.
        before: bytes of the first line that were not kept, because it is too long.
    """
    if first == 1 and not before:
        block = block.removeprefix(b"\xef\xbb\xbf")
    if not before and len(block) <= MAX_LINE_BYTES and (found := _alike(block, first)) is not None:
        return found
    entries = []
    for number, line in enumerate(block.split(b"\n"), first):
        size = len(line) + (before if number == first else 0)
        if size > MAX_LINE_BYTES:
            entries.append(_long_line(number, size))
        elif line.strip():
            entries.append(parse_line(line, number))
    return Entries.of(entries)


def _alike(block: bytes, first: int) -> Entries | None:
    """Lines that are plain objects, all of them: they take a third of the time together, and a
    tenth where they differ in prompts and seeds alone."""
    try:
        texts = block.decode().split("\n")
    except UnicodeDecodeError:
        return None
    count = len(texts)
    values, rows = [_UNREAD] * count, rows_of_lines(texts)
    if rows is None:
        found = strict_json.objects(texts)
        if found is None:
            return None
        values, rows = [*found], rows_of(found)
    return Entries(values, [None] * count, [*range(first, first + count)], texts, *rows)


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


def _long_line(number: int, size: int) -> Entry:
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
