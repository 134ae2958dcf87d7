"""The sampler's two implementations: whatever draws a row, it has the same tokens.

Without a GPU the Triton kernels run in Triton's interpreter.
"""

import os
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from cases import Case, MakeCheckpoint, draw, random_case, row_of
from test_isolation import _poisoned

from farm.errors import RenderError
from farm_workers.engine import Engine
from farm_workers.engine.row import Live, Pending, start
from farm_workers.engine.sampler import State, TorchSampler
from farm_workers.engine.tile import FixedTile, RowTile, Tile
from farm_workers.engine.tile_pool import Kind, TilePool

TritonSampler = pytest.importorskip(
    "farm_workers.engine.triton_sampler", exc_type=ImportError
).TritonSampler
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="tests/gpu has the kernels on a GPU"
)


class ByRow(FixedTile):
    """A tile of fixed shape whose forward pass computes each half-slot by itself."""

    def _features(self) -> torch.Tensor:
        given = [self._model.bind(half[None, None]) for half in self.packed]
        found = [
            self._model.forward(tokens[None], one, self.grid)[0]
            for tokens, one in zip(self.state.tokens, given, strict=True)
        ]
        return torch.cat(found)


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles as on a GPU: a fixed shape, and the Triton kernels."""

    def make(pool: TilePool, kind: Kind) -> Tile:
        width = pool.width_of(kind.grid, urgent=kind.urgent)
        return ByRow(pool._model, kind.grid, width=width, urgent=kind.urgent, on_host=False)

    monkeypatch.setattr(TilePool, "_make", make)


def _cases(engine: Engine, seed: int, count: int = 9) -> list[Case]:
    random = Random(seed)
    modes = ["text2img", "img2img", "inpaint"]
    return [
        random_case(random, engine.checkpoint, rng="farm-1", mode=modes[n % 3], small=True)
        for n in range(count)
    ]


def _small(make_checkpoint: MakeCheckpoint, **arguments: Any) -> Engine:
    path = make_checkpoint(num_hidden_layers=1, hidden_size=64, codebook_size=256, size=24, seed=3)
    return Engine.load(path, threads=1, **arguments)


def test_tiles_of_a_gpu_draw_the_tokens_of_a_cpu(
    make_checkpoint: MakeCheckpoint, request: pytest.FixtureRequest
) -> None:
    engine = _small(make_checkpoint, tile=2)
    expected = draw(engine, *_cases(engine, 1))
    assert all(isinstance(tile, RowTile) for tile in engine._tiles)
    request.getfixturevalue("on_device")
    engine = _small(make_checkpoint, tile=2)
    found = draw(engine, *_cases(engine, 1))
    assert all(isinstance(tile.sampler, TritonSampler) for tile in engine._tiles)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.pixels, other.pixels)
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)
        assert one.steps == other.steps


def test_rows_without_guidance_take_a_second_group(
    make_checkpoint: MakeCheckpoint, request: pytest.FixtureRequest
) -> None:
    """Four in the half-slots of two guided ones, and a guided one after them."""
    engine = _small(make_checkpoint, tile=2)
    cases = [
        Case(row_of(engine.checkpoint, seed=seed, guidance_scale=scale, num_inference_steps=2))
        for seed, scale in enumerate([0.0, 0.0, 1.0, 0.5, 4.0])
    ]
    expected = draw(engine, *cases)
    request.getfixturevalue("on_device")
    engine = _small(make_checkpoint, tile=2)
    for key, case in enumerate(cases):
        engine.add(key, case.row)
    found: dict[Any, Any] = {}
    groups = set()
    while not engine.idle:
        found |= {result.key: result for result in engine.step()}
        groups |= {tile.sampler.groups for tile in engine._tiles if tile.rows}
    assert groups == {1, 2}
    for key, result in enumerate(expected):
        np.testing.assert_array_equal(found[key].tokens, result.tokens)


@pytest.mark.usefixtures("on_device")
def test_a_row_that_is_not_finite_fails_alone_on_the_device_too(
    make_checkpoint: MakeCheckpoint,
) -> None:
    engine = _small(make_checkpoint, tile=2)
    good = _cases(engine, 2, 2)
    expected = draw(engine, *good)
    found = draw(engine, good[0], _poisoned(engine, float("nan")), good[1])
    assert isinstance(found[1].error, RenderError)
    for one, other in zip(expected, (found[0], found[2]), strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)


class Scores:
    """A model whose features are the scores."""

    def __init__(self, engine: Engine) -> None:
        self.info = engine.checkpoint
        self.device = engine._model.device

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        return features


def test_both_samplers_fix_the_same_tokens(engine: Engine) -> None:
    """As many as the schedule wants, in scattered half-slots, with and without guidance."""
    drawn = {}
    for name in ("torch", "triton"):
        model, state = Scores(engine), State.empty(4, SEQ_LEN, torch.device("cpu"))
        sampler: Any = TorchSampler(model, state)
        if name == "triton":
            sampler = TritonSampler(model, state)
        lives = _lives(engine)
        for live in lives:
            sampler.enter(live, live.start)
        noise, left = torch.Generator().manual_seed(4), []
        for _ in range(4):
            scores = torch.randn(4, SEQ_LEN, engine.checkpoint.codebook_size, generator=noise)
            sampler.step(scores, lives)
            for live in lives:
                live.step += 1
            masked = state.tokens == engine.checkpoint.mask_token_id
            left.append(masked.sum(-1).tolist())
        assert left == [[9, 0, 9, 9], [5, 0, 5, 5], [1, 0, 1, 1], [0, 0, 0, 0]]
        assert torch.equal(state.tokens[2], state.tokens[0])
        tokens, facts, places = sampler.outcome(lives)
        drawn[name] = [(tokens[place], facts[place]) for place in places]
    for (tokens, facts), (others, their_facts) in zip(*drawn.values(), strict=True):
        assert torch.equal(tokens, others)
        torch.testing.assert_close(facts.float(), their_facts.float())
        assert 0 < float(facts[0]) < 1
        assert float(facts[1]) == 0


SEQ_LEN = 12


def _lives(engine: Engine) -> list[Live]:
    found = []
    for slots, scale in (((2, 0), 4), ((3,), 1)):
        row = row_of(engine.checkpoint, seed=2**64 - 5, num_inference_steps=4, guidance_scale=scale)
        pending = Pending(0, row, False, None, None, None, None)
        live = start(pending, engine.checkpoint, None, "cosine")
        live.start, live.painted = live.start[:SEQ_LEN], live.painted[:SEQ_LEN]
        live.schedule = live.schedule._replace(planned=(9, 5, 1, 0))
        live.slots = slots
        found.append(live)
    return found
