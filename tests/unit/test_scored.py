"""Scores that an export keeps beside what it fetched."""

import os
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from farm.cli import score
from farm.errors import InvalidInput
from farm.export.scored import Score, scored
from farm_client import scores as client
from farm_client.models import Page

A, B = "a" * 64, "b" * 64


def test_columns_of_all_scorers_come_together_and_the_later_one_counts(tmp_path: Path) -> None:
    with scored(tmp_path) as known:
        known.add([(0, 0, A, {"x": 1, "y": 0.1}), (0, 0, B, {"x": 2}), (0, 1, A, {"x": 3})])
        known.add([])
        assert known.count == 3
        assert known.of(0, 1, A) == {"x": 3}
        assert known.of(1, 0, A) == {}
    with scored(tmp_path) as known:
        known.add([(0, 0, A, {"x": 1, "y": 0.1}), (0, 0, A, {"y": "é", "z": True})])
        assert known.of(0, 0, A) == {"x": 1, "y": "é", "z": True}


def test_nothing_stays_behind(tmp_path: Path) -> None:
    (tmp_path / ".scores.part").write_bytes(b"of one that was killed")
    with scored(tmp_path) as known:
        known.add([(0, 0, A, {"x": 1})])
    assert os.listdir(tmp_path) == []


def test_memory_does_not_grow_with_the_scores(tmp_path: Path) -> None:
    def many() -> Iterator[Score]:
        for render in range(20_000):
            yield render, 0, f"{render:064d}", {"pdq": f"{render:064x}", "pdq_quality": 80}

    tracemalloc.start()
    try:
        with scored(tmp_path) as known:
            known.add(many())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert known.count == 20_000
    assert peak < 2_000_000, "kept in memory they are 14,000,000 bytes"


def test_pictures_that_were_scored_already_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Listed:
        connection = None

        async def pages(self) -> AsyncIterator[Page]:
            for page in ():
                yield page

    def known(_: object) -> Iterator[tuple[str, client.Score]]:
        for render in range(20_000):
            yield "x", client.Score(render, 0, f"{render:064d}", {})

    monkeypatch.setattr(score, "read_scores", known)
    tracemalloc.start()
    try:
        scorers: Any = {"x": None}
        counts = score._score(Listed(), scorers, 1)  # type: ignore[arg-type]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert counts == {"x": 0}
    assert peak < 2_000_000, "kept in memory they are 6,700,000 bytes"


def test_a_folder_that_takes_nothing_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot hold the scores"), scored(tmp_path / "gone"):
        pass


def test_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    def fill() -> None:
        with scored(tmp_path) as known:
            known._database.execute("PRAGMA max_page_count = 4")
            known.add((render, 0, A, {"x": 1}) for render in range(10_000))

    with pytest.raises(InvalidInput, match="is full"):
        fill()
    assert os.listdir(tmp_path) == []
