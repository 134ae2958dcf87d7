"""Urgent rows run at once, bulk rows keep their floor, token grids take turns."""

import time
from collections import Counter
from dataclasses import dataclass, field

from cases import MakeCheckpoint, row_of

from farm_workers.engine.engine import Engine
from farm_workers.engine.tiles import Tile
from farm_workers.engine.turns import Turns


@dataclass(eq=False)
class Work:
    name: str
    urgent: bool = False
    cost: float = 1.0
    rows: list[int] = field(default_factory=lambda: [1])


def _order(turns: Turns, ready: list[Work], tiles: list[Work], count: int) -> list[str]:
    chosen = (turns.choose(ready, tiles) for _ in range(count))
    return [work.name for work in chosen if work is not None]


def test_urgent_work_goes_first() -> None:
    tiles = [Work("bulk", cost=16), Work("urgent", urgent=True)]
    assert _order(Turns(), [], tiles, 12) == ["urgent"] * 12


def test_bulk_keeps_a_fifth_of_the_work() -> None:
    tiles = [Work("bulk", cost=8), Work("urgent", urgent=True, cost=2)]
    spent = Counter(_order(Turns(), [], tiles, 1000))
    bulk, urgent = spent["bulk"] * 8, spent["urgent"] * 2
    assert 0.19 < bulk / (bulk + urgent) < 0.21


def test_bulk_rows_that_wait_for_admission_have_the_floor_too() -> None:
    spent = Counter(_order(Turns(), [Work("waiting")], [Work("urgent", urgent=True)], 100))
    assert spent["waiting"] == 20


def test_token_grids_share_the_time_not_the_steps() -> None:
    tiles = [Work("small", cost=1), Work("large", cost=4)]
    spent = Counter(_order(Turns(), [], tiles, 500))
    assert abs(spent["small"] - 4 * spent["large"]) <= 4


def test_a_tile_that_comes_late_gets_no_credit_for_its_absence() -> None:
    turns, first, late = Turns(), Work("first"), Work("late")
    _order(turns, [], [first], 100)
    assert Counter(_order(turns, [], [first, late], 20)) == {"first": 10, "late": 10}


def test_nothing_to_do_is_nothing() -> None:
    assert Turns().choose([], []) is None


def _steps_until(engine: Engine, key: str) -> tuple[float, int]:
    """Tokens of work and pieces of it until the key comes out."""
    spent, pieces = 0.0, 0
    step = Tile.step

    def counted(tile: Tile) -> None:
        nonlocal spent
        spent += tile.cost
        step(tile)

    Tile.step = counted  # type: ignore[method-assign]
    try:
        while True:
            pieces += 1
            if any(done.key == key for done in engine.step()):
                return spent, pieces
    finally:
        Tile.step = step  # type: ignore[method-assign]


def test_an_urgent_row_costs_an_idle_farm_s_time_plus_a_tile_step(
    make_checkpoint: MakeCheckpoint,
) -> None:
    engine = Engine.load(make_checkpoint(num_hidden_layers=1), threads=1, rows=64, tile=8)
    info = engine.checkpoint
    engine.add("idle", row_of(info, seed=1), urgent=True)
    idle, _ = _steps_until(engine, "idle")
    for key in range(40):
        engine.add(key, row_of(info, seed=key))
    for _ in range(20):  # the bulk tile is full
        engine.step()
    tile_step = max(tile.cost for tile in engine._tiles)
    for number in range(5):
        engine.add(f"urgent {number}", row_of(info, seed=2), urgent=True)
        busy, _ = _steps_until(engine, f"urgent {number}")
        assert busy <= 1.3 * idle + tile_step
    engine.cancel(range(40))
    assert engine.idle


def test_an_urgent_row_is_quick_on_the_clock_too(make_checkpoint: MakeCheckpoint) -> None:
    engine = Engine.load(make_checkpoint(num_hidden_layers=1), threads=1)
    info = engine.checkpoint

    def timed() -> float:
        started = time.process_time()  # neighbours of this process do not count
        engine.add("urgent", row_of(info, seed=2), urgent=True)
        while not any(done.key == "urgent" for done in engine.step()):
            pass
        return time.process_time() - started

    timed()
    idle = sorted(timed() for _ in range(3))[1]
    for key in range(16):
        engine.add(key, row_of(info, seed=key, num_inference_steps=100))
    for _ in range(20):
        engine.step()
    tile = max((tile for tile in engine._tiles), key=lambda tile: tile.cost)
    started = time.process_time()
    engine.step()
    tile_step = time.process_time() - started
    assert len(tile.rows) == 8
    busy = sorted(timed() for _ in range(3))[1]
    engine.cancel(range(16))
    assert engine.idle
    assert busy <= 1.3 * idle + 2 * tile_step


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
