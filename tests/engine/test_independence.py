"""A row's tokens and pixels follow from the row alone."""

from random import Random

import numpy as np
import pytest
from adapter_files import adapted, random_file
from cases import Case, MakeCheckpoint, random_case, run

from farm_workers.engine import Engine, Result

ROWS = 200
SMALL = {"num_hidden_layers": 1, "hidden_size": 64, "codebook_size": 256, "seed": 3}


def _cases(engine: Engine, random: Random, count: int) -> list[Case]:
    """A third of them with an adapter or two."""
    files = [random_file(random, engine) for _ in range(5)]
    found = []
    for number in range(count):
        case = random_case(
            random,
            engine.checkpoint,
            rng=("farm-1", "torch")[number % 2],
            mode=random.choice(["text2img", "img2img", "inpaint"]),
            small=True,
        )
        chosen = random.sample(files, random.choice([0, 0, 0, 0, 1, 2]))
        named = [(file, random.uniform(-1, 2)) for file in chosen]
        found.append(adapted(engine, case, *named))
    return found


def _alone(engine: Engine, cases: list[Case]) -> list[Result]:
    found = []
    for key, case in enumerate(cases):
        engine.add(key, case.row, **case.inputs)
        found.append(run(engine)[key])
    return found


def _together(engine: Engine, cases: list[Case], random: Random) -> dict[object, Result]:
    """In random order, some urgent, some late, with neighbours that are cancelled half way."""
    found: dict[object, Result] = {}
    order = random.sample(range(len(cases)), len(cases))
    while order or not engine.idle:
        for _ in range(random.choice([0, 0, 1, 5])):
            if order:
                key = order.pop()
                engine.add(key, cases[key].row, **cases[key].inputs, urgent=random.random() < 0.2)
                if random.random() < 0.3:
                    extra = random.choice(cases)
                    engine.add(("extra", key), extra.row, **extra.inputs)
        if random.random() < 0.1:
            engine.cancel(
                [("extra", key) for key in random.sample(range(len(cases)), len(cases) // 5)]
            )
        for done in engine.step():
            assert done.error is None
            found[done.key] = done
    return found


def test_200_rows_are_the_same_alone_and_among_neighbours(make_checkpoint: MakeCheckpoint) -> None:
    engine = Engine.load(make_checkpoint(**SMALL), threads=1, rows=2 * ROWS)
    random = Random(2026)
    cases = _cases(engine, random, ROWS)
    alone, together = _alone(engine, cases), _together(engine, cases, random)
    for key, expected in enumerate(alone):
        np.testing.assert_array_equal(together[key].tokens, expected.tokens)
        np.testing.assert_array_equal(together[key].pixels, expected.pixels)
        assert together[key].confidence == expected.confidence


@pytest.mark.parametrize("tile", [1, 3])
def test_the_width_of_the_tiles_changes_nothing(make_checkpoint: MakeCheckpoint, tile: int) -> None:
    path = make_checkpoint(**SMALL)
    random = Random(tile)
    wide, narrow = Engine.load(path, threads=1), Engine.load(path, threads=1, tile=tile, rows=64)
    assert wide.numerics == narrow.numerics
    cases = _cases(wide, random, 12)
    expected, found = _together(wide, cases, random), _together(narrow, cases, random)
    for key in range(len(cases)):
        np.testing.assert_array_equal(found[key].tokens, expected[key].tokens)
        np.testing.assert_array_equal(found[key].pixels, expected[key].pixels)


@pytest.mark.parametrize("threads", [2, 3])
def test_several_threads_keep_rows_apart(make_checkpoint: MakeCheckpoint, threads: int) -> None:
    # Kernels that split a batch among threads are where neighbours could come in.
    engine = Engine.load(make_checkpoint(**SMALL), threads=threads)
    try:
        random = Random(threads)
        cases = _cases(engine, random, 6)
        alone, together = _alone(engine, cases), _together(engine, cases, random)
    finally:
        Engine.load(make_checkpoint(**SMALL), threads=1)
    for key, expected in enumerate(alone):
        np.testing.assert_array_equal(together[key].tokens, expected.tokens)
        np.testing.assert_array_equal(together[key].pixels, expected.pixels)
