"""Rows by columns are the rows that are made one by one."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from fake_engine import INFO
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.formats.columns import FIXED, fixed_columns
from farm.formats.manifest import ManifestColumns, ManifestRow, write_part
from farm.formats.picture_file import token_bytes
from farm.formats.picture_record import PictureRecord
from farm.formats.token_pictures import TokenPictures
from farm.job import Chunk, Format
from farm.renders import NumberedSpec, Renders
from farm.sinks.layout import Packed
from farm.sinks.shards import Spot
from farm.spec import MAX_SEED, RenderRequest, RenderSpec

BASE = RenderRequest(prompt="p", num_images=2).resolve(INFO, seed=0)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
AWKWARD = ('","prompt":"x","rng":"', '\\","rng":', "", "\u2028 \x00 🚲", '{"strength":1}')


@st.composite
def specs(draw: st.DrawFn) -> RenderSpec:
    """Variants of a few renders."""
    changes: dict[str, Any] = {
        "prompt": draw(st.none() | TEXTS | st.sampled_from(AWKWARD)),
        "seed": draw(st.integers(0, MAX_SEED)),
        "negative_prompt": draw(st.none() | st.sampled_from(AWKWARD)),
        "guidance_scale": draw(st.sampled_from([0.0, 3.5])),
    }
    return BASE.model_copy(update=changes)


def told_by(row: ManifestRow) -> Mapping[str, Any]:
    """The columns of one row as its spec's JSON and its own fields say them."""
    spec = json.loads(row.spec)
    own = row._asdict() | {"index": row.image, "notes": "\n".join(row.notes)}
    own["metadata"] = row.metadata or "{}"
    names = ("prompt", "negative_prompt", "checkpoint", "mode", "num_inference_steps")
    own |= {name: spec[name] or "" for name in names} | {"guidance_scale": spec["guidance_scale"]}
    return {name: own[name] for name in FIXED}


@settings(max_examples=50)
@given(st.lists(st.tuples(specs(), st.none() | st.just('{"id":1}')), min_size=1, max_size=8))
def test_tokens_by_columns_give_the_rows_that_they_give_one_by_one(
    given: list[tuple[RenderSpec, str | None]],
) -> None:
    renders = [
        NumberedSpec(render=3 * number, spec=spec, metadata=metadata)
        for number, (spec, metadata) in enumerate(given)
    ]
    chunk = Chunk(
        job="j", number=0, tenant="t", sink="tokens", format=Format.TOKENS,
        lane=str(BASE.lane), renders=Renders.of(renders),
    )  # fmt: skip
    first, others = (TokenPictures(chunk, [], [], [], [], []) for _ in range(2))
    expected = []
    for one in reversed(renders):
        for image in range(2):
            tokens = np.random.default_rng(one.render).integers(0, 99, (2, 3), dtype=np.uint16)
            numerics, notes = f"n{image}", ("a note", "another")[:image]
            made = TokenPictures(
                chunk, [(one.render, image)], [token_bytes(tokens)], [numerics], [notes], [0.5]
            )
            (others if expected else first).extend(made)
            record = PictureRecord(
                "j", 1, one.render, image, one.spec, numerics, Format.TOKENS,
                notes, one.metadata, 0.5,
            )  # fmt: skip
            expected.append(record.tokens_row(tokens))
    first.extend(others)
    rows = first.rows(1)
    assert list(rows) == expected
    assert write_part(rows) == write_part(expected)
    columns = fixed_columns(rows)
    for number, row in enumerate(expected):
        assert {name: columns[name][number] for name in FIXED} == told_by(row)


def test_specs_that_are_written_otherwise_are_read_as_well() -> None:
    row = PictureRecord("j", 0, 0, 0, BASE, "n", Format.TOKENS).tokens_row(np.zeros((2, 2)))
    spec = json.loads(row.spec)
    for text in (
        json.dumps(spec),
        json.dumps(spec | {"quick": True}, sort_keys=True, separators=(",", ":")),
        json.dumps(spec, sort_keys=False, separators=(",", ":")),
    ):
        columns = fixed_columns([row, row._replace(spec=text)])
        assert list(columns["prompt"]) == ["p", "p"]
        assert list(columns["checkpoint"]) == [BASE.checkpoint] * 2


def test_columns_are_a_sequence_of_rows() -> None:
    record = PictureRecord("j", 0, 0, 0, BASE, "n", Format.TOKENS)
    rows = [record._replace(render=number).tokens_row(np.zeros((2, 2))) for number in (2, 0, 1)]
    columns = ManifestColumns.of(rows)
    assert (list(columns), columns[-1], list(columns[1:])) == (rows, rows[-1], rows[1:])
    assert [row.render for row in columns.ordered()] == [0, 1, 2]
    assert list(ManifestColumns.of([])) == []
    with pytest.raises(IndexError):
        columns[3]


@settings(max_examples=50)
@given(TEXTS, st.lists(st.tuples(st.integers(0, 2**40), TEXTS), max_size=4))
def test_the_spots_of_a_shard_are_written_like_one(key: str, spots: list[tuple[int, str]]) -> None:
    packed = Packed(b"data", [offset for offset, _ in spots])
    found = Spot.texts(key, packed, [name for _, name in spots], "ab")
    assert found == [str(Spot(key, offset, name, 4, "ab")) for offset, name in spots]
