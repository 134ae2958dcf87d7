"""What is counted of a data set."""

import json
from typing import Any

import numpy as np
import pytest

from farm.export.statistics import NEAR, Statistics, duplicates, entropy
from farm.formats.manifest import ManifestRow
from farm.formats.picture_file import token_bytes


def row(
    tokens: Any = None, confidence: float | None = None, error: str | None = None, **spec: Any
) -> ManifestRow:
    told = {"checkpoint": "c@1", "mode": "text2img", **spec}
    return ManifestRow(
        job="", generation=0, render=0, image=0, file=None, sha256=None, size=None, width=8,
        height=16, seed=0, spec_sha256="", spec=json.dumps(told),
        tokens=None if tokens is None else token_bytes(np.array(tokens)), tokens_sha256=None,
        numerics="n", error=error, confidence=confidence,
    )  # fmt: skip


def test_the_entropy_of_equally_frequent_tokens_is_the_logarithm_of_their_number() -> None:
    assert entropy([np.array([5, 5, 5], np.uint16)]) == 0
    assert entropy([np.arange(8, dtype=np.uint16), np.arange(8, dtype=np.uint16)]) == 3
    assert entropy([]) == 0
    shares = np.array([0.5, 0.25, 0.125, 0.125])
    tokens = np.repeat(np.array([7, 8191, 2, 3], np.uint16), (shares * 16).astype(int))
    assert entropy([tokens]) == pytest.approx(1.75)


def test_duplicates_are_counted_once_each_and_only_among_pictures_of_one_size() -> None:
    first = np.arange(20, dtype=np.uint16)
    near, far = first.copy(), first.copy()
    near[:2] += 100  # 18 of 20 are equal
    far[:3] += 100
    other_size = np.arange(40, dtype=np.uint16)
    assert duplicates([first, other_size]) == (0, 0)
    assert duplicates([first, far]) == (0, 0)
    assert duplicates([first, near]) == (0, 1)
    assert duplicates([first, first, first, near, other_size]) == (2, 1)


def test_duplicates_are_those_of_a_plain_comparison_of_all_pairs() -> None:
    random = np.random.default_rng(5)
    for length, kinds, count in ((10, 2, 200), (37, 9, 60), (256, 8192, 60), (256, 8192, 3)):
        grids = [random.integers(0, kinds, length).astype(np.uint16) for _ in range(count)]
        for number in random.integers(1, count, count // 2):  # some are like an earlier one
            grids[number] = grids[number // 2].copy()
            changed = random.integers(0, length, random.integers(0, length // 5 + 1))
            grids[number][changed] = random.integers(0, kinds, len(changed))
        equal = [
            max((int(np.sum(a == b)) for a in grids[:number]), default=0)
            for number, b in enumerate(grids)
        ]
        exact = equal.count(length)
        assert duplicates(grids) == (exact, sum(e >= NEAR * length for e in equal) - exact)


def test_lanes_have_their_failures_and_confidence() -> None:
    statistics = Statistics()
    statistics.add_shard("a", [row([1, 2], 0.2), row([1, 2], 0.4), row([3, 4], None)])
    statistics.add_shard("b", [row([1, 2], 0.6), row([5, 5], 0.9, mode="inpaint")])
    for failed in (row(error="{}"), row(mode="img2img", error="{}")):
        statistics.add(failed)
    told = json.loads(statistics.to_json())
    lane = told["lanes"]["c@1/text2img/16x8"]
    assert (lane["pictures"], lane["failed"], lane["failure_rate"]) == (4, 1, 0.2)
    assert lane["confidence"] == {"p10": 0.24, "median": 0.4, "p90": 0.56}
    unknown = told["lanes"]["c@1/img2img/16x8"]["confidence"]
    assert unknown == dict.fromkeys(lane["confidence"])
    assert told["lanes"]["c@1/inpaint/16x8"]["pictures"] == 1
    assert [(one["shard"], one["exact_duplicates"]) for one in told["shards"]] == [
        ("a", 1),
        ("b", 0),
    ]
    assert any("1 exact, 0 near" in line for line in statistics.summary())
