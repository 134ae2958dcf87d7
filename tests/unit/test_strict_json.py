"""JSON that every reader reads alike."""

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import InvalidInput
from farm.strict_json import MAX_DEPTH, loads

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


@given(st.text())
def test_no_text_does_more_than_be_refused(text: str) -> None:
    with contextlib.suppress(InvalidInput):
        loads(text)
