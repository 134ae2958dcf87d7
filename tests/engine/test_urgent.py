"""Urgent rows run at once, bulk rows keep their floor, token grids take turns."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from cases import MakeCheckpoint, row_of

from farm_workers.engine import Engine
from farm_workers.engine.tile import Tile
from farm_workers.engine.tile_pool import StepPolicy


@dataclass(eq=False)
class Work:
    name: str
    urgent: bool = False
    cost: float = 1.0
    rows: list[int] = field(default_factory=lambda: [1])


def _order(turns: StepPolicy, ready: list[Work], tiles: list[Work], count: int) -> list[str]:
    chosen = (turns.choose(ready, tiles) for _ in range(count))
    return [work.name for work in chosen if work is not None]


def test_urgent_work_goes_first() -> None:
    tiles = [Work("bulk", cost=16), Work("urgent", urgent=True)]
    assert _order(StepPolicy(), [], tiles, 12) == ["urgent"] * 12


def test_bulk_keeps_a_fifth_of_the_work() -> None:
    tiles = [Work("bulk", cost=8), Work("urgent", urgent=True, cost=2)]
    spent = Counter(_order(StepPolicy(), [], tiles, 1000))
    bulk, urgent = spent["bulk"] * 8, spent["urgent"] * 2
    assert 0.19 < bulk / (bulk + urgent) < 0.21


def test_bulk_rows_that_wait_for_admission_have_the_floor_too() -> None:
    spent = Counter(_order(StepPolicy(), [Work("waiting")], [Work("urgent", urgent=True)], 100))
    assert spent["waiting"] == 20


def test_token_grids_share_the_time_not_the_steps() -> None:
    tiles = [Work("small", cost=1), Work("large", cost=4)]
    spent = Counter(_order(StepPolicy(), [], tiles, 500))
    assert abs(spent["small"] - 4 * spent["large"]) <= 4


def test_a_tile_that_comes_late_gets_no_credit_for_its_absence() -> None:
    turns, first, late = StepPolicy(), Work("first"), Work("late")
    _order(turns, [], [first], 100)
    assert Counter(_order(turns, [], [first, late], 20)) == {"first": 10, "late": 10}


def test_nothing_to_do_is_nothing() -> None:
    assert StepPolicy().choose([], []) is None


class Piece(NamedTuple):
    """A piece of work that was done, with its cost when it was chosen."""

    urgent: bool
    cost: float
    is_step: bool


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> list[Piece]:
    """Every piece that an engine does, in order: admissions, steps of tiles, decodings."""
    found: list[Piece] = []
    choose = StepPolicy.choose

    def recorded(turns: StepPolicy, ready: Any, tiles: Any) -> Any:
        work = choose(turns, ready, tiles)
        if work is not None:
            found.append(Piece(work.urgent, work.cost, isinstance(work, Tile)))
        return work

    monkeypatch.setattr(StepPolicy, "choose", recorded)
    return found


def _until(engine: Engine, key: str, pieces: list[Piece]) -> list[Piece]:
    """The pieces that run until the key comes out."""
    pieces.clear()
    while not any(done.key == key for done in engine.step()):
        pass
    return list(pieces)


def test_an_urgent_row_costs_an_idle_farm_s_work_plus_a_tile_step(
    make_checkpoint: MakeCheckpoint, pieces: list[Piece]
) -> None:
    """Bulk rows come and go meanwhile; their admissions and decodings count as well."""
    engine = Engine.load(make_checkpoint(num_hidden_layers=1), threads=1, rows=64, tile=8)
    info = engine.checkpoint
    engine.add("idle", row_of(info, seed=1), urgent=True)
    idle = sum(piece.cost for piece in _until(engine, "idle", pieces))
    for key in range(40):
        engine.add(key, row_of(info, seed=key))
    for _ in range(20):  # the bulk tile is full
        engine.step()
    tile_step = max(tile.cost for tile in engine._tiles)
    for number in range(5):
        engine.add(f"urgent {number}", row_of(info, seed=2), urgent=True)
        busy = sum(piece.cost for piece in _until(engine, f"urgent {number}", pieces))
        assert busy <= 1.3 * idle + tile_step
    engine.cancel(range(40))
    assert engine.idle


def test_few_bulk_steps_come_between_an_urgent_row_s_own(
    make_checkpoint: MakeCheckpoint, pieces: list[Piece]
) -> None:
    """Its own pieces are those of an idle farm: bulk rows never join its tile or its decoding."""
    engine = Engine.load(make_checkpoint(num_hidden_layers=1), threads=1, tile=8)
    info = engine.checkpoint
    engine.add("idle", row_of(info, seed=1), urgent=True)
    idle = _until(engine, "idle", pieces)
    assert len(idle) == 13  # its admission with the first step, eleven steps, its decoding
    for key in range(16):
        engine.add(key, row_of(info, seed=key, num_inference_steps=100))
    for _ in range(20):
        engine.step()
    for number in range(3):
        engine.add(f"urgent {number}", row_of(info, seed=2), urgent=True)
        busy = _until(engine, f"urgent {number}", pieces)
        assert [piece for piece in busy if piece.urgent] == idle
        between = [piece for piece in busy if not piece.urgent]
        assert len(between) <= 1
        assert all(piece.is_step and piece.cost == 8 * 2 * 64 for piece in between)
    engine.cancel(range(16))
    assert engine.idle


def test_bulk_rows_finish_under_a_constant_urgent_load(engine: Engine) -> None:
    info = engine.checkpoint
    engine.add("urgent", row_of(info, num_inference_steps=4), urgent=True)
    engine.step()
    engine.add("bulk", row_of(info, num_inference_steps=4))
    for _ in range(200):
        for done in engine.step():
            if done.key == "bulk":
                engine.cancel(["urgent"])
                assert engine.idle
                return
            engine.add("urgent", row_of(info, num_inference_steps=4), urgent=True)
    raise AssertionError("the bulk row starved")
