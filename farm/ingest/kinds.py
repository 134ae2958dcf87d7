"""Rows by what they say besides prompt, seed and metadata, in which rows of most files differ."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from farm import strict_json
from farm.errors import InvalidInput
from farm.metadata import split_columns

MAX_ALIKE = 10_000  # characters of what rows have in common; longer ones are not compared
# Of lines that are read by their kinds; of many more kinds, each line may have its own.
MAX_KINDS = 8
LINES_OF_KIND = 16  # for each kind above that

_PROMPT = re.compile(r'"prompt"[ \t]*:[ \t]*"')
_SEED = re.compile(r'"seed"[ \t]*:[ \t]*(?=[0-9])')
_NUMBER = re.compile(r"(?:0|[1-9][0-9]{0,19})(?=[ \t]*[,}])")
_NOT_PLAIN = re.compile(r"[\x00-\x1f\\]")


@dataclass(frozen=True, eq=False, slots=True)
class Kind:
    """What rows have in common: a row's parameters without prompt and seed, or the row as it is if
    it is no object."""

    value: Any


class Rows(NamedTuple):
    """A column for each part of a row."""

    kinds: list[Kind]
    prompts: list[Any]  # None where there is none
    seeds: list[Any]
    own: list[dict[str, Any] | None]  # what else there is besides parameters


def rows_of(values: Iterable[Any]) -> Rows:
    """The rows of values that were read."""
    rows = Rows([], [], [], [])
    known: dict[str, Kind] = {}
    for value in values:
        rest, prompt, seed, own = value, None, None, None
        if isinstance(value, dict):
            rest, own = split_columns(value)
            prompt, seed = rest.pop("prompt", None), rest.pop("seed", None)
        # Its text tells 1, 1.0 and true apart, and 0.0 from -0.0, which are equal.
        kind, text = Kind(rest), repr(rest)
        if len(text) <= MAX_ALIKE:
            kind = known.setdefault(text, kind)
        rows.kinds.append(kind)
        rows.prompts.append(prompt)
        rows.seeds.append(seed)
        rows.own.append(own)
    return rows


def rows_of_lines(lines: Sequence[str]) -> Rows | None:
    """The rows of lines that differ in plain prompts and seeds alone, without reading each.

    A line whose prompt is emptied, and whose seed is 0, is read once, as is every other line that
    has the same text then. A string without quotes, backslashes and control characters stands for
    itself, so all of them are good, or none.

    Args:
        lines: texts without line feeds.

    Returns:
        None where a line is not of this form; it says nothing of what is wrong.
    """
    form = _Form.of(lines[0])
    if form is None:
        return None
    rows = Rows([], [], [], [])
    known: dict[str, tuple[Kind, dict[str, Any] | None]] = {}
    for place, line in enumerate(lines):
        text, prompt, number = form.split(line)
        if (found := known.get(text)) is None:
            few = len(known) < MAX_KINDS + place // LINES_OF_KIND
            value = form.value(text) if few else None
            if value is None:
                return None
            rest, own = split_columns(value)
            found = known[text] = Kind(rest), own
        rows.kinds.append(found[0])
        rows.prompts.append(prompt)
        rows.seeds.append(number)
        rows.own.append(found[1])
    prompts = "".join(rows.prompts)
    if "\\" in prompts or not (prompts.isprintable() or not _NOT_PLAIN.search(prompts)):
        return None
    return rows


class _Form(NamedTuple):
    """How prompt and seed are written."""

    prompt: str  # the key with what follows, up to the opening quote
    seed: str | None  # the key with what follows, up to the number

    @classmethod
    def of(cls, line: str) -> "_Form | None":
        mark = _PROMPT.search(line)
        if mark is None:
            return None
        seed = _SEED.search(cls(mark[0], None).split(line)[0])
        return cls(mark[0], seed[0] if seed else None)

    def split(self, line: str) -> tuple[str, str, int | None]:
        """The line with an empty prompt and the seed 0, and what it had there."""
        before, mark, rest = line.partition(self.prompt)
        prompt, quote, after = rest.partition('"')
        text = f"{before}{mark}{quote}{after}"
        if self.seed is None:
            return text, prompt, None
        before, mark, rest = text.partition(self.seed)
        number = _NUMBER.match(rest)
        if number is None:
            return text, prompt, None
        return f"{before}{mark}0{rest[number.end() :]}", prompt, int(number[0])

    def value(self, text: str) -> dict[str, Any] | None:
        """Of a line that was split, without the two; None if what was split off is not its prompt
        and seed. Another key may end like these, and they may stand in an object within the row."""
        other = text.replace(f'{self.prompt}"', f'{self.prompt}x"', 1)
        if self.seed is not None:
            other = other.replace(f"{self.seed}0", f"{self.seed}1", 1)
        try:
            first, second = strict_json.loads(text), strict_json.loads(other)
        except InvalidInput:
            return None
        if not isinstance(first, dict) or not isinstance(second, dict):
            return None
        seeds = (0, 1) if self.seed is not None else (None, None)
        split = [(row.pop("prompt", None), row.pop("seed", None)) for row in (first, second)]
        return first if split == [("", seeds[0]), ("x", seeds[1])] else None
