"""Conditions on columns, and near duplicates: what is kept of a data set."""

import random
import tracemalloc

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.errors import InvalidInput
from farm.export.duplicates import Dedup, HashedPicture, duplicates
from farm.export.where import Where

ROWS = [
    {"nsfw": nsfw, "confidence": confidence, "category": category, "good": good}
    for nsfw in (0.0, 0.05, 0.5)
    for confidence in (0.1, 0.4, 0.9)
    for category in ("cat", "dog", "it's")
    for good in (True, False)
]
TABLE = pa.Table.from_pylist(ROWS)

numbers = st.sampled_from(["0.05", "0.4", "-1", "1", "0"])
fields = st.sampled_from(["nsfw", "confidence"])
operators = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
comparisons = st.one_of(
    st.builds("{} {} {}".format, fields, operators, numbers),
    st.builds("{} {} {} {} {}".format, numbers, operators, fields, operators, numbers),
    st.builds("category {} {}".format, operators, st.sampled_from(['"cat"', '"it\'s"', '"zebra"'])),
    st.sampled_from(['category in ("cat", "dog")', 'category not in ["cat"]', "good", "not good"]),
)
conditions = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.builds("({}) and ({})".format, inner, inner),
        st.builds("({}) or ({}) or good".format, inner, inner),
        st.builds("not ({})".format, inner),
    ),
    max_leaves=6,
)


@settings(max_examples=200)
@given(conditions)
def test_a_condition_keeps_the_rows_that_python_would_keep(text: str) -> None:
    expected = [row for row in ROWS if eval(text, {}, dict(row))]
    assert Where.parse(text).filter(TABLE).to_pylist() == expected


def test_a_row_without_the_value_is_not_wanted_unless_that_is_asked() -> None:
    table = pa.table({"nsfw": [0.01, None, 0.9]})
    assert Where.parse("nsfw < 0.1").filter(table).to_pylist() == [{"nsfw": 0.01}]
    assert Where.parse("not nsfw < 0.1").filter(table).to_pylist() == [{"nsfw": 0.9}]
    assert Where.parse("nsfw is None").filter(table).num_rows == 1
    assert Where.parse("nsfw is not None").filter(table).num_rows == 2


@pytest.mark.parametrize(
    "text",
    [
        "", "nsfw", "nsfw <", "nsfw < 0.1 +", "__import__('os')", "nsfw.real < 1", "nsfw() < 1",
        "[n for n in nsfw]", "lambda: 1", "nsfw < (1, 2)", "nsfw in ()", "nsfw in category",
        "nsfw is 1", "f'{nsfw}' == 'x'", "nsfw < 1j", "nsfw < b'x'", "nsfw < None",
        "1 if nsfw else 2", "nsfw < 'a'", "(" * 300 + "good" + ")" * 300, "good and " * 2000,
        "nsfw := 1", "nsfw < 0.1; nsfw", "\0", "nsfw < 9" + "9" * 400, "category < good",
        "nsfw < " + "-" * 1900 + "1", "nsfw < 1" + " + 1" * 480, "nsfw > -" + "9" * 20,
        "nsfw in (1, -" + "9" * 20 + ")",
    ],
)  # fmt: skip
def test_what_is_not_a_condition_on_the_columns_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Where.parse(text).filter(TABLE)
    assert refused.value.field == "--where"
    assert refused.value.hint


@pytest.mark.parametrize("text", ["nsfw in (1, 'x')", "category == '\\ud800'", "good in (True, 1)"])
def test_values_that_are_not_of_one_kind_are_not_called_too_deep(text: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be read") as refused:
        Where.parse(text)
    assert "deep" not in str(refused.value)


def test_a_column_that_no_row_has_is_named() -> None:
    where = Where.parse("nsfv < 0.1")
    with pytest.raises(InvalidInput, match="'nsfv'") as refused:
        where.check_columns(["nsfw", "confidence"])
    assert refused.value.hint == "did you mean nsfw?"


def test_a_condition_as_people_first_write_it_gets_a_hint() -> None:
    with pytest.raises(InvalidInput) as refused:
        Where.parse("category = 'cat'")
    assert "==" in str(refused.value.hint)
    with pytest.raises(InvalidInput, match="\"'cat'\" is not a list") as refused:
        Where.parse('category in ("cat")')
    assert '["cat"]' in str(refused.value.hint)


@pytest.mark.parametrize("distance", [0, 1, 8, 15, 16, 31, 63])
@pytest.mark.parametrize("few", [8, 512])
def test_duplicates_are_those_that_a_comparison_of_all_pairs_finds(
    distance: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.export.duplicates.FEW", few)
    monkeypatch.setattr("farm.export.duplicates.PAIRS", 50)
    rng = random.Random(distance)
    hashes: list[int] = []
    for _ in range(300):
        pdq = rng.getrandbits(256)
        if hashes and rng.random() < 0.7:  # a picture like an earlier one
            pdq = rng.choice(hashes)
            for bit in rng.sample(range(256), rng.choice([0, distance, distance + 1, 2])):
                pdq ^= 1 << bit
        hashes.append(pdq)
    doubts = [rng.choice([0.1, 0.5, rng.random()]) for _ in hashes]
    expected: list[int] = []
    kept: list[int] = []
    for place in sorted(range(300), key=lambda place: (doubts[place], place)):
        if any((hashes[place] ^ other).bit_count() <= distance for other in kept):
            expected.append(place)
        else:
            kept.append(hashes[place])
    pictures = [
        HashedPicture(doubts[place], place, pdq.to_bytes(32)) for place, pdq in enumerate(hashes)
    ]
    assert list(duplicates(pictures, distance)) == expected
    assert expected


def test_among_no_pictures_and_among_those_with_all_bits_apart_there_are_no_duplicates() -> None:
    assert list(duplicates([], 63)) == []
    apart = [HashedPicture(0, place, bytes([255 * place]) * 32) for place in range(2)]
    assert list(duplicates(apart, 63)) == []


def test_a_picture_takes_little_memory_while_its_like_is_looked_for() -> None:
    rng, count = random.Random(1), 20_000
    tracemalloc.start()
    try:
        pictures = (HashedPicture(0.5, place, rng.randbytes(32)) for place in range(count))
        assert not list(duplicates(pictures, 8))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 500 * count, "kept by each of their bands they are 2,800 bytes"


@pytest.mark.parametrize("text", ["pdq", "pdq:", "pdq:-1", "pdq:64", "phash:8", "pdq:8.5", ""])
def test_ways_to_find_duplicates_that_are_not_known_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="duplicates"):
        Dedup.parse(text)
