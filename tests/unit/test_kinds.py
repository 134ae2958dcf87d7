"""Rows that are read by their kinds are the rows that each line is alone."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm import strict_json
from farm.errors import InvalidInput
from farm.ingest.kinds import LINES_OF_KIND, MAX_KINDS, Rows, rows_of, rows_of_lines
from farm.ingest.ndjson import Entry, parse_line, parse_lines

# Lines are made of a few of these, so that many of them are alike, or nearly.
STARTS = ['{"prompt": "', '{"prompt":"', '{"height": 64, "prompt": "', '{"seed": 7, "prompt": "']
ODD = [
    '{"a\\"prompt": "', '{"metadata": {"prompt": "', '{"prompt": "x", "prompt": "', '{"PROMPT": "',
    '{"text": "\\"prompt\\": ", "prompt": "', '{"prompt" : "', ' {"prompt": "', '["prompt": "', "",
]  # fmt: skip
PROMPTS = [
    "a red circle", "", "é", "\u200d", "\x7f", "\\n", "\\", '\\"', '"', "\t", '"seed": 5', "}",
]  # fmt: skip
ENDS = [
    '"}', '", "seed": 5}', '", "seed": 61}', '", "seed":5}', '", "num_images": 2}', '"}\r', '" }',
]  # fmt: skip
ODD_ENDS = [
    '", "seed": 05}', '", "seed": 5.0}', '", "seed": 5e1}', '", "seed": null}', '", "seed": -5}',
    '", "seed": 5, "seed": 6}', '", "metadata": {"seed": 5}}', '", "a": {"b": 1}}', '"}}', '"',
    '", "a\\"seed": 5}', '", "a": NaN}', '", "seed": 18446744073709551616}', '"} {}', "",
]  # fmt: skip


def lines_of(
    starts: list[str], prompts: list[str], ends: list[str], most: int = 4
) -> st.SearchStrategy[list[str]]:
    one = st.tuples(*map(st.sampled_from, (starts, prompts, ends)))
    return st.lists(one.map("".join), min_size=1, max_size=most)


PLAIN = lines_of(STARTS[:1], PROMPTS[:5], ENDS[:2]) | lines_of(STARTS, PROMPTS, ENDS)
ANY = lines_of([*STARTS, *ODD], PROMPTS, [*ENDS, *ODD_ENDS])


def told(rows: Rows) -> list[str]:
    return [repr((kind.value, *rest)) for kind, *rest in zip(*rows, strict=True)]


@settings(max_examples=400)
@given(PLAIN | ANY)
def test_lines_read_by_kinds_are_what_each_of_them_is(lines: list[str]) -> None:
    rows = rows_of_lines(lines)
    if rows is not None:
        assert told(rows) == told(rows_of([strict_json.loads(line) for line in lines]))


@given(PLAIN | ANY)
def test_a_block_of_lines_is_what_each_of_them_is(lines: list[str]) -> None:
    found = list(parse_lines("\n".join(lines).encode(), 2))
    alone = [parse_line(line.encode(), at) for at, line in enumerate(lines, 2) if line.strip()]
    assert list(map(shown, found)) == list(map(shown, alone))


def shown(entry: Entry) -> tuple[str, ...]:
    return repr(entry.data), str(entry.error), str(entry.line), entry.text


@pytest.mark.parametrize("more", [{}, {"seed": 5}, {"height": 64, "metadata": {"a": [1]}}])
@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":")])
def test_rows_that_differ_in_prompt_and_seed_have_one_kind(
    more: dict[str, Any], separators: tuple[str, str]
) -> None:
    values = [{"prompt": f"a circle {at}", **more} for at in range(5)]
    for at, value in enumerate(values):
        if "seed" in value:
            value["seed"] = 10**at
    rows = rows_of_lines([json.dumps(value, separators=separators) for value in values])
    assert rows is not None
    assert told(rows) == told(rows_of(values))
    assert len(set(rows.kinds)) == 1


def test_metadata_make_no_other_kind() -> None:
    rows = rows_of([{"prompt": "x", "id": number, "height": 64} for number in range(3)])
    assert len(set(rows.kinds)) == 1
    assert rows.kinds[0].value == {"height": 64}
    assert rows.own == [{"id": number} for number in range(3)]


def test_few_kinds_are_known_at_a_time() -> None:
    lines = [json.dumps({"prompt": "x", "id": number}) for number in range(MAX_KINDS + 1)]
    assert rows_of_lines(lines[:-1]) is not None
    assert rows_of_lines(lines) is None
    many = [json.dumps({"prompt": "x", "id": number // LINES_OF_KIND}) for number in range(800)]
    rows = rows_of_lines(many)
    assert rows is not None
    assert told(rows) == told(rows_of(map(json.loads, many)))


def test_an_entry_is_read_from_its_text_when_it_is_asked_for() -> None:
    entries = parse_lines(b'{"prompt": "a"}\n{"prompt": "b", "seed": 3}', 1)
    assert [entry.data for entry in entries] == [{"prompt": "a"}, {"prompt": "b", "seed": 3}]
    assert [entry.data for entry in entries[1:]] == [{"prompt": "b", "seed": 3}]
    with pytest.raises(InvalidInput):
        raise parse_lines(b'{"prompt": "a"', 1)[0].error or AssertionError
