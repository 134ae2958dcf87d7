"""The first pass of rows that start all masked is shared, and sharing it changes nothing."""

from typing import Any

import numpy as np
import pytest
from cases import ASSET, Case, draw, row_of

from farm_workers.engine import Engine
from farm_workers.engine.tile import FirstStepCache


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The passes that were computed, in order."""
    found: list[Any] = []
    make = FirstStepCache._make
    monkeypatch.setattr(
        FirstStepCache, "_make", lambda self, *given: found.append(given) or make(self, *given)
    )
    return found


def _fresh(engine: Engine, cache_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FirstStepCache(engine._model, cache_bytes=cache_bytes)
    monkeypatch.setattr(engine, "_first_steps", cache)


def test_pictures_of_a_prompt_share_it_and_prompts_share_the_negative_one(
    engine: Engine, made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _fresh(engine, 1 << 25, monkeypatch)
    info = engine.checkpoint
    draw(engine, *(Case(row_of(info, seed=seed)) for seed in range(4)))
    assert len(made) == 2
    draw(engine, Case(row_of(info, prompt="another")))
    assert len(made) == 3
    draw(engine, Case(row_of(info, height=72, width=64)))
    assert len(made) == 5


def test_a_pass_that_was_kept_gives_the_tokens_of_one_that_was_not(
    engine: Engine, made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    info = engine.checkpoint
    cases = [Case(row_of(info, seed=seed, prompt=f"take {seed % 2}")) for seed in range(4)]
    _fresh(engine, 1 << 25, monkeypatch)
    shared = draw(engine, *cases)
    assert len(made) == 3
    _fresh(engine, 1, monkeypatch)  # keeps only what was used last
    for case, expected in zip(cases, shared, strict=True):
        done = draw(engine, case)[0]
        np.testing.assert_array_equal(done.tokens, expected.tokens)
        assert done.confidence == expected.confidence
    assert len(made) > 6


def test_a_row_with_known_tokens_takes_its_first_step_with_the_others(
    engine: Engine, made: list[Any]
) -> None:
    tokens = np.full((8, 8), engine.checkpoint.mask_token_id)
    tokens[0, 0] = 5
    row = row_of(engine.checkpoint, latents=ASSET, num_inference_steps=3)
    assert draw(engine, Case(row, {"latents": tokens}))[0].steps == 3
    assert not made


def test_a_render_of_one_step_is_done_when_it_is_admitted(engine: Engine) -> None:
    done = draw(engine, Case(row_of(engine.checkpoint, num_inference_steps=1)))[0]
    assert done.steps == 1
    assert done.error is None
