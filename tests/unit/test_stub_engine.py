"""The engine that draws nothing, for measurements."""

from fake_engine import INFO

from farm.spec import RenderRequest, Row
from farm_workers.testing.stub_engine import StubEngine


def row_of(seed: int, steps: int = 3) -> Row:
    request = RenderRequest(prompt="x", seed=seed, num_inference_steps=steps)
    return Row.of(request.resolve(INFO, seed=0), 0)


def test_without_a_step_time_all_rows_are_finished_at_once() -> None:
    engine = StubEngine(INFO, 4)
    for seed in range(4):
        engine.add(seed, row_of(seed, steps=seed + 1))
    assert engine.room(row_of(0).spec.lane) == 0
    assert [done.key for done in engine.step()] == [0, 1, 2, 3]
    assert engine.idle


def test_with_one_a_row_takes_its_steps_and_urgent_rows_most_of_them() -> None:
    engine = StubEngine(INFO, 4, step_seconds=1e-6)
    engine.add("bulk", row_of(1, steps=2))
    engine.add("urgent", row_of(2, steps=8), urgent=True)
    ended = {}
    for step in range(1, 20):
        ended |= {done.key: step for done in engine.step()}
    assert ended == {"urgent": 9, "bulk": 10}  # the fifth and the tenth step were for it


def test_the_same_row_has_the_same_picture_whatever_is_beside_it() -> None:
    alone, beside = StubEngine(INFO), StubEngine(INFO)
    alone.add(0, row_of(7))
    for seed in range(100):
        beside.add(seed, row_of(seed), pixels=seed % 2 == 1)
    (expected,) = alone.step()
    found = {done.key: done for done in beside.step()}
    assert (found[7].tokens == expected.tokens).all()
    assert found[7].pixels is not None
    assert expected.pixels is not None
    assert (found[7].pixels == expected.pixels).all()
    assert found[8].pixels is None
    assert found[7].tokens.shape == INFO.grid(INFO.native_height, INFO.native_width)
    assert len({done.tokens.tobytes() for done in found.values()}) == 100
