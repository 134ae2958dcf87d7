"""JSON that every reader reads alike."""

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import InvalidInput
from farm.strict_json import MAX_DEPTH, loads, objects

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@given(VALUES, st.sampled_from([None, 1, " "]))
def test_good_json_is_read_as_usual(value: Any, indent: Any) -> None:
    text = json.dumps(value, indent=indent)
    assert loads(text) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ('{"a": 1,}', 1, 8, "comma"),
        ('{"a": 1, "b": 2, "a": 3}', 1, 18, "twice"),
        ('{"a": {"b": 1, "b": 2}}', 1, 16, "twice"),
        ('{"a": NaN}', 1, 7, "NaN"),
        ('{"a": "NaN", "b": -Infinity}', 1, 19, "Infinity"),
        ("{'a': 1}", 1, 2, "quotes"),
        ('{"a": 1} {"b": 2}', 1, 10, "after"),
        ('{"a":\n  x}', 2, 3, "not JSON"),
        ('{"a": "b', 1, 7, "not JSON"),
        ("", 1, 1, "not JSON"),
        (" " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), 1, 2, "levels"),
        ("[" * 100_000 + "]" * 100_000, 1, 1, "deeply"),
        ('{"\u00fc": 1, "\u00fc": 2}', 1, 10, "twice"),
        ("9" * 5000, 1, 1, "not JSON"),
    ],
)
def test_bad_json_is_refused_with_its_place(text: str, line: int, column: int, words: str) -> None:
    with pytest.raises(InvalidInput) as error:
        loads(text, line=1)
    assert (error.value.line, error.value.column) == (line, column)
    assert words in error.value.message


def test_brackets_in_text_are_not_nesting() -> None:
    assert loads(json.dumps({"a": "[" * 100})) == {"a": "[" * 100}
    assert len(loads("[" + "[]," * 99 + "[]]")) == 100
    assert loads("[" * MAX_DEPTH + "]" * MAX_DEPTH)


def test_a_hostile_text_costs_no_more_than_its_length() -> None:
    started = time.monotonic()
    for text in ('[NaN, "' + '\\"' * 500_000, "[" * 40 + '"' * 999_999, '{"a": NaN' + "\\" * 10**6):
        with pytest.raises(InvalidInput):
            loads(text)
    assert time.monotonic() - started < 5


# Pieces of which good lines are made, and lines that are good only together with others.
PIECES = st.sampled_from(
    [
        *(
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            '"',
            " ",
            "\r",
            "\\",
            "1",
            "NaN",
            "{}",
            "[]",
            '"a"',
            '"a":',
        ),
        *('{"a":', '{"a":1}', '{"a":1,"a":2}', '{"a":[1,[2]]}', '{"a":{"b":1}}'),
        *('{"a":[{}', "{}]}", "{},{}"),
    ]
)
LINES = st.lists(st.lists(PIECES, max_size=6).map("".join), max_size=5)
FLAT = st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.integers(), max_size=2))


def each(lines: list[str]) -> list[Any] | None:
    """What ``objects`` must find, by reading line by line."""
    try:
        values = [loads(line) for line in lines]
    except InvalidInput:
        return None
    flat = all(isinstance(value, dict) and "{" not in str([*value.values()]) for value in values)
    return values if flat else None


@given(LINES)
def test_lines_read_together_are_what_each_of_them_is(lines: list[str]) -> None:
    found = objects(lines)
    assert found is None or found == each(lines)


@given(st.lists(FLAT, min_size=1, max_size=5), st.sampled_from(["", " ", "\r"]))
def test_plain_lines_can_be_read_together(values: list[dict[str, Any]], end: str) -> None:
    assert objects([json.dumps(value) + end for value in values]) == values
    assert objects([json.dumps(value, ensure_ascii=False) for value in values]) == values


@pytest.mark.parametrize(
    "lines",
    [
        ['{"a":[{}', "{}]}", "{},{}"],
        ['{"a":1', '"b":2}', "{},{}"],
        ['{"a":"b', 'c"}', "{},{}"],
        ["{}", "{}]", "[{}"],
        ["{}", ""],
        ["{}", " {}"],
        ["{}", "7"],
        ['{"a":1,"a":2}'],
        ['{"a":NaN}'],
        ['{"a":{}}'],
        ['{"a":' + "[" * 32 + "]" * 32 + "}"],
        ['{"a":' + "[" * 100_000],
        ['{"a":' + "9" * 5000 + "}"],
        [],
    ],
)
def test_lines_that_are_not_plain_are_left_to_be_read_one_by_one(lines: list[str]) -> None:
    assert objects(lines) is None


@given(st.text())
def test_no_text_does_more_than_be_refused(text: str) -> None:
    with contextlib.suppress(InvalidInput):
        loads(text)
