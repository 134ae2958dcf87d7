"""The step that a GPU runs, here in plain torch: the same tokens as the host's step."""

from random import Random

import numpy as np
import pytest
import torch
from cases import Case, MakeCheckpoint, draw, random_case

from farm.errors import RenderError
from farm_workers.engine import kernels
from farm_workers.engine.engine import Engine
from farm_workers.engine.philox import exponentials
from farm_workers.engine.sampler import choose, guide
from farm_workers.engine.tile_pool import TilePool


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    kind_of = TilePool.kind
    monkeypatch.setattr(
        TilePool, "kind", lambda self, pending: kind_of(self, pending)._replace(on_host=False)
    )


def _cases(engine: Engine, seed: int) -> list[Case]:
    random = Random(seed)
    modes = ["text2img", "img2img", "inpaint"] * 4
    return [
        random_case(random, engine.checkpoint, rng="farm-1", mode=mode, small=True)
        for mode in modes
    ]


def test_the_device_step_draws_the_host_step_s_tokens(
    make_checkpoint: MakeCheckpoint, request: pytest.FixtureRequest
) -> None:
    path = make_checkpoint(num_hidden_layers=1, hidden_size=64, codebook_size=256, seed=3)
    engine = Engine.load(path, threads=1, tile=3)
    expected = draw(engine, *_cases(engine, 1))
    request.getfixturevalue("on_device")
    engine = Engine.load(path, threads=1, tile=3)
    for one, other in zip(expected, draw(engine, *_cases(engine, 1)), strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        assert one.confidence == pytest.approx(other.confidence, abs=1e-6)


@pytest.mark.usefixtures("on_device")
def test_a_row_that_is_not_finite_fails_alone_on_the_device_too(engine: Engine) -> None:
    from test_isolation import _poisoned

    good = _cases(engine, 2)[:2]
    expected = draw(engine, *good)
    found = draw(engine, good[0], _poisoned(engine, float("nan")), good[1])
    assert isinstance(found[1].error, RenderError)
    for one, other in zip(expected, (found[0], found[2]), strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)


def test_the_tile_s_sampler_is_the_row_s_sampler() -> None:
    noise = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 2, 10, 300, generator=noise)
    unknown = torch.rand(3, 10, generator=noise) < 0.6
    scale, seeds, steps = torch.tensor([4.0, 1.5, 9.0]), torch.tensor([1, -5, 9]), torch.arange(3)
    codes, chosen = kernels.sample(logits, unknown, scale, seeds, steps)
    for row in range(3):
        masked = unknown[row]
        guided = guide(logits[row, 0, masked], logits[row, 1, masked], scale[row])
        race = exponentials(seeds[row], masked.nonzero()[:, 0], steps[row], 300)
        expected, probability = choose(guided, race)
        assert torch.equal(codes[row, masked], expected)
        torch.testing.assert_close(chosen[row, masked], probability)
    assert bool((codes[~unknown] == 0).all())
