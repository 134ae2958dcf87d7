"""The engine on a GPU: rows apart, graphs and eager steps alike, urgent rows first."""

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from adapter_files import adapted, random_file
from cases import Case, draw, random_case, row_of, run
from needs import needs_gpu

from farm.errors import RenderError
from farm_workers.engine import Engine
from farm_workers.testing.tiny import make_tiny

pytestmark = needs_gpu


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    make_tiny(path, downsample=True)
    return path


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16"])
def engine(request: pytest.FixtureRequest, checkpoint: Path) -> Engine:
    return Engine.load(checkpoint, device="cuda", dtype=request.param, tile=4)


def _cases(engine: Engine, seed: int, count: int = 12) -> list[Case]:
    """A third of them with adapters, of ranks from 1 to 40."""
    random, modes = Random(seed), ["text2img", "img2img", "inpaint"]
    files = [random_file(random, engine, rank=rank) for rank in (1, 16, 40)]
    found = []
    for number in range(count):
        case = random_case(random, engine.checkpoint, rng="farm-1", mode=modes[number % 3])
        named = [(file, 1.0) for file in random.sample(files, (0, 0, 1, 0, 2, 0)[number % 6])]
        found.append(adapted(engine, case, *named))
    return found


def test_rows_are_the_same_alone_and_among_neighbours(engine: Engine) -> None:
    cases = _cases(engine, 1)
    alone = [draw(engine, case)[0] for case in cases]
    order = Random(2).sample(range(len(cases)), len(cases))
    together = draw(engine, *(cases[index] for index in order))
    for place, index in enumerate(order):
        np.testing.assert_array_equal(together[place].tokens, alone[index].tokens)
        np.testing.assert_array_equal(together[place].pixels, alone[index].pixels)


@pytest.mark.parametrize("with_adapters", [False, True])
def test_a_graph_gives_the_eager_step_s_tokens(engine: Engine, with_adapters: bool) -> None:
    cases = [Case(row_of(engine.checkpoint, seed=seed)) for seed in range(6)]
    if with_adapters:
        file = random_file(Random(3), engine)
        cases[1:4] = [adapted(engine, case, (file, 1.0)) for case in cases[1:4]]
    with_graph = draw(engine, *cases)
    tiles, decoder = list(engine._tiles), engine._model.codec._tile
    graphs = [tile._replays for tile in tiles]
    assert any(graphs)
    decoders = decoder._graphs
    assert decoders
    try:
        for tile in tiles:
            tile._replays = {}
        decoder._graphs = {}
        eager = draw(engine, *cases)
    finally:
        for tile, graph in zip(tiles, graphs, strict=True):
            tile._replays = graph
        decoder._graphs = decoders
    for one, other in zip(with_graph, eager, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_float32_draws_the_cpu_s_picture(checkpoint: Path) -> None:
    gpu = Engine.load(checkpoint, device="cuda", dtype="float32")
    cpu = Engine.load(checkpoint, threads=1)
    cases = [Case(row_of(cpu.checkpoint, seed=seed, num_inference_steps=4)) for seed in range(8)]
    same = [
        float((one.tokens == other.tokens).mean())
        for one, other in zip(draw(gpu, *cases), draw(cpu, *cases), strict=True)
    ]
    assert np.median(same) == 1.0  # the numbers drawn are the same; scores differ in the last bits


def test_torch_s_own_numbers_work_on_the_gpu(checkpoint: Path) -> None:
    from oracle import Oracle

    gpu, oracle = Engine.load(checkpoint, device="cuda", dtype="float32"), Oracle(checkpoint)
    rows = [row_of(gpu.checkpoint, seed=seed, rng="torch") for seed in range(4)]
    found = draw(gpu, *(Case(row) for row in rows))
    same = [
        np.array_equal(done.tokens, oracle.tokens(row))
        for row, done in zip(rows, found, strict=True)
    ]
    assert sum(same) >= 3


def test_a_row_that_is_not_finite_fails_alone(engine: Engine) -> None:
    from test_isolation import _poisoned

    good = [Case(row_of(engine.checkpoint, seed=seed, guidance_scale=1)) for seed in range(2)]
    expected = draw(engine, *good)
    found = draw(engine, good[0], _poisoned(engine, float("nan")), good[1])
    assert isinstance(found[1].error, RenderError)
    for one, other in zip(expected, (found[0], found[2]), strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)


def test_previews_change_no_bits(engine: Engine) -> None:
    from test_isolation import check_previews_change_nothing

    check_previews_change_nothing(engine)


def test_a_step_does_not_wait_for_the_device(engine: Engine) -> None:
    """Nor does an admission, a row that leaves or a decoding; pace is kept by events alone."""
    row = row_of(engine.checkpoint, num_inference_steps=8)
    draw(engine, Case(row))  # the libraries set themselves up, pinned memory is there
    engine.add(0, row)
    found: list[Any] = []
    torch.cuda.set_sync_debug_mode("error")
    try:
        while not engine.idle:
            found += engine.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [result.error for result in found] == [None]


def test_float32_is_exact_inside_and_the_process_s_own_affair_outside(engine: Engine) -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with engine._model.device.scope():
            assert not torch.backends.cudnn.allow_tf32
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def test_rows_without_adapters_keep_their_bits_beside_rows_with_them(engine: Engine) -> None:
    plain = [Case(row_of(engine.checkpoint, seed=seed)) for seed in range(3)]
    file = random_file(Random(3), engine, everything=True)
    expected = draw(engine, *plain)
    found = draw(engine, *plain, *(adapted(engine, case, (file, 1.0)) for case in plain))
    for place, one in enumerate(expected):
        np.testing.assert_array_equal(one.tokens, found[place].tokens)
        np.testing.assert_array_equal(one.pixels, found[place].pixels)
        assert not np.array_equal(one.tokens, found[3 + place].tokens)


def test_an_urgent_row_is_the_same_beside_others(engine: Engine) -> None:
    row = row_of(engine.checkpoint, seed=5)
    engine.add("urgent", row, urgent=True)
    alone = run(engine)["urgent"]
    for key in range(6):
        engine.add(key, row_of(engine.checkpoint, seed=key))
    engine.add("urgent", row, urgent=True)
    beside = run(engine)["urgent"]
    np.testing.assert_array_equal(alone.tokens, beside.tokens)
    np.testing.assert_array_equal(alone.pixels, beside.pixels)
    assert "tile 1" in beside.numerics


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_a_second_gpu_is_used_whatever_the_current_one_is(checkpoint: Path) -> None:
    second = Engine.load(checkpoint, device="cuda:1", dtype="float32", tile=2)
    first = Engine.load(checkpoint, device="cuda:0", dtype="float32", tile=2)
    case = Case(row_of(first.checkpoint, seed=3))
    one, other = draw(first, case)[0], draw(second, case)[0]
    np.testing.assert_array_equal(one.tokens, other.tokens)


def test_cancelled_rows_leave_their_slots(engine: Engine) -> None:
    done: list[Any] = []
    for key in range(6):
        engine.add(key, row_of(engine.checkpoint, seed=key))
    for _ in range(9):
        done += engine.step()
    engine.cancel([0, 2, 5])
    assert set(run(engine)) == {1, 3, 4}
