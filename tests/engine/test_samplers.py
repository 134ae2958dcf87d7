"""The sampler's two implementations: whatever draws a row, it has the same tokens.

Without a GPU the Triton kernels run in Triton's interpreter.
"""

from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from cases import Case, MakeCheckpoint, draw, random_case
from test_isolation import _poisoned

from farm.errors import RenderError
from farm_workers.engine import Engine
from farm_workers.engine.row import start
from farm_workers.engine.sampler import State, TorchSampler, TritonSampler
from farm_workers.engine.tile import Kind, RowTile, Tile, TilePool

pytest.importorskip("triton", reason="the kernels need Triton")


class ByRow(Tile):
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
    path = make_checkpoint(num_hidden_layers=1, hidden_size=64, codebook_size=256, seed=3)
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
        assert one.confidence == pytest.approx(other.confidence, abs=1e-6)
        assert one.steps == other.steps


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


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_every_step_fixes_what_the_schedule_wants(engine: Engine, name: str) -> None:
    model, seq_len = Scores(engine), 12
    state = State.empty(4, seq_len, torch.device("cpu"))
    sampler: Any = TorchSampler(model, state)
    if name == "triton":
        sampler = TritonSampler(model, state, model.device)
    lives = []
    for slots, case in zip([(2, 0), (3,)], _row_cases(engine), strict=True):
        live = start(case, engine.checkpoint, None, "cosine")
        live.start, live.painted = live.start[:seq_len], live.painted[:seq_len]
        live.schedule = live.schedule._replace(planned=(9, 5, 1, 0))
        live.slots = slots
        sampler.enter(live, live.start)
        lives.append(live)
    noise = torch.Generator().manual_seed(4)
    left = []
    for _ in range(4):
        features = torch.randn(4, seq_len, engine.checkpoint.codebook_size, generator=noise)
        sampler.step(features, lives)
        for live in lives:
            live.step += 1
        masked = state.tokens == engine.checkpoint.mask_token_id
        left.append([int(masked[slot].sum()) for slot in range(4)])
    assert left == [[9, 0, 9, 9], [5, 0, 5, 5], [1, 0, 1, 1], [0, 0, 0, 0]]
    assert torch.equal(state.tokens[2], state.tokens[0])
    tokens, facts, places = sampler.outcome(lives)
    assert [tokens[place].tolist() for place in places] == [
        state.predicted[2].tolist(),
        state.predicted[3].tolist(),
    ]
    assert ((facts[list(places), 0] > 0) & (facts[list(places), 1] == 0)).all()
    GOLDEN.setdefault("tokens", state.tokens.clone())
    assert torch.equal(state.tokens, GOLDEN["tokens"])  # of the other implementation


GOLDEN: dict[str, torch.Tensor] = {}


def _row_cases(engine: Engine) -> list[Any]:
    from cases import row_of

    from farm_workers.engine.row import Pending

    rows = [row_of(engine.checkpoint, seed=2**64 - 5, num_inference_steps=4, guidance_scale=scale)
            for scale in (4, 1)]  # fmt: skip
    return [Pending(0, row, False, None, None, None, None) for row in rows]
