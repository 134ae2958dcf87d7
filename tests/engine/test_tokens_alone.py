"""Rows that are wanted without their pictures: the same tokens, and nothing is decoded."""

from random import Random
from typing import Any

import numpy as np
import pytest
from cases import Case, draw, random_case, row_of, run

from farm_workers.engine import Engine
from farm_workers.engine.amused.codec import Codec


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures were decoded each time."""
    found: list[int] = []
    decode = Codec.decode

    def counted(codec: Codec, tokens: Any, *given: Any, **named: Any) -> Any:
        found.append(len(tokens))
        return decode(codec, tokens, *given, **named)

    monkeypatch.setattr(Codec, "decode", counted)
    return found


def _add(engine: Engine, key: int, case: Case, **named: Any) -> None:
    engine.add(key, case.row, **case.inputs, **named)


@pytest.mark.parametrize("mode", ["text2img", "img2img", "inpaint"])
def test_rows_without_pictures_have_the_same_tokens_and_nothing_is_decoded(
    engine: Engine, decoded: list[int], mode: str
) -> None:
    random = Random(mode)
    cases = [
        random_case(random, engine.checkpoint, rng="farm-1", mode=mode, small=True)
        for _ in range(4)
    ]
    drawn = draw(engine, *cases)
    decoded.clear()
    for key, case in enumerate(cases):
        _add(engine, key, case, pixels=False)
    found = run(engine)
    assert decoded == []
    for key, expected in enumerate(drawn):
        assert expected.pixels is not None
        assert found[key].pixels is None
        np.testing.assert_array_equal(found[key].tokens, expected.tokens)
        assert found[key].confidence == expected.confidence
        assert found[key].numerics == expected.numerics


def test_rows_with_and_without_pictures_share_a_tile(engine: Engine, decoded: list[int]) -> None:
    cases = [Case(row_of(engine.checkpoint, seed=seed)) for seed in range(6)]
    drawn = draw(engine, *cases)
    decoded.clear()
    for key, case in enumerate(cases):
        _add(engine, key, case, pixels=key % 2 == 0, urgent=key == 5)
    found = run(engine)
    assert sum(decoded) == 3
    for key, expected in enumerate(drawn):
        np.testing.assert_array_equal(found[key].tokens, expected.tokens)
        if key % 2 == 0:
            np.testing.assert_array_equal(found[key].pixels, expected.pixels)
        else:
            assert found[key].pixels is None


def test_a_preview_of_such_a_row_is_decoded(engine: Engine, decoded: list[int]) -> None:
    _add(engine, 0, Case(row_of(engine.checkpoint, num_inference_steps=4)), pixels=False)
    while not decoded:
        engine.step()
        shown = engine.preview(0, 0)
    assert shown is not None
    assert shown.pixels.shape == (64, 64, 3)
    assert run(engine)[0].pixels is None
    assert decoded == [1]


def test_such_a_row_can_be_cancelled_at_any_step(engine: Engine) -> None:
    case = Case(row_of(engine.checkpoint, num_inference_steps=3))
    for steps in range(8):
        _add(engine, 0, case, pixels=False)
        _add(engine, 1, case, pixels=False)
        seen = [result.key for _ in range(steps) for result in engine.step()]
        engine.cancel([0])
        assert sorted({*seen, *run(engine)}) in ([1], [0, 1])
        assert engine.idle
