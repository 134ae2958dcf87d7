"""Prompts are computed once, kept within a bound, and encoded in tiles that change nothing."""

from typing import Any

import pytest
import torch
from cases import Case, draw, row_of

from farm_workers.engine import Engine
from farm_workers.engine.amused.conditioning import Conditioning
from farm_workers.engine.device import Lru
from farm_workers.engine.row import Pending


def test_the_cache_is_bounded_by_bytes_and_forgets_the_oldest() -> None:
    made: list[str] = []
    cache: Lru[str] = Lru(10, len)

    def get(key: str, size: int = 4) -> str:
        return cache.get(key, lambda: made.append(key) or "x" * size)

    for key in ("a", "b", "a", "c"):
        get(key)
    assert made == ["a", "b", "c"]
    assert cache.held == 8
    get("a")
    get("b")
    assert made == ["a", "b", "c", "b"]
    get("large", 100)  # kept alone, because it is in use
    assert (len(cache), cache.held) == (1, 100)


def _conditioning(engine: Engine, cache_bytes: int) -> Conditioning:
    given = engine._model.conditioning
    model = engine._model
    return Conditioning(
        model.info,
        model.device,
        given._tokenizer,
        given._encoder,
        model.transformer,
        cache_bytes=cache_bytes,
    )


def _pending(engine: Engine, **request: Any) -> Pending:
    return Pending(0, row_of(engine.checkpoint, **request), False, None, None, None, None)


def test_the_empty_prompt_is_encoded_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    encode = Conditioning._encode
    monkeypatch.setattr(
        Conditioning,
        "_encode",
        lambda self, texts, width: seen.append(texts) or encode(self, texts, width),
    )
    conditioning = _conditioning(engine, cache_bytes=1)  # keeps only what was used last
    with torch.inference_mode():
        for prompt in ("one", "two", "three", "two"):
            conditioning.of(_pending(engine, prompt=prompt), width=1)
    assert seen == [[""], ["one"], ["two"], ["three"], ["two"]]


def test_a_kept_text_does_not_keep_the_batch_that_it_was_encoded_in(engine: Engine) -> None:
    conditioning = _conditioning(engine, cache_bytes=1 << 30)
    with torch.inference_mode():
        (text,) = conditioning.encode(["one"], width=4)
    assert text.hidden.untyped_storage().nbytes() == text.hidden.nbytes
    assert text.pooled.untyped_storage().nbytes() == text.pooled.nbytes


def test_prompts_of_a_batch_are_what_they_are_in_any_batch(engine: Engine) -> None:
    rows = [_pending(engine, prompt=f"picture {number}") for number in range(6)]
    alone, together = (_conditioning(engine, cache_bytes=1 << 30) for _ in range(2))
    with torch.inference_mode():
        for row in rows:
            first, second = alone.of(row, width=4), together.of(row, rows, width=4)
            for one, other in zip(first, second, strict=True):
                assert torch.equal(one.packed, other.packed)
                assert one.key == other.key
    assert len(together._packed) == 7  # the negative prompt is one for all


def test_rows_that_come_next_fill_a_batch(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    make = Conditioning._make
    monkeypatch.setattr(
        Conditioning,
        "_make",
        lambda self, halves, *given: sizes.append(len(halves)) or make(self, halves, *given),
    )
    rows = [_pending(engine, prompt=f"picture {number}") for number in range(11)]
    conditioning = _conditioning(engine, cache_bytes=1 << 30)
    with torch.inference_mode():
        for place, row in enumerate(rows):
            conditioning.of(row, rows[place + 1 :], width=4)
    assert sizes == [4, 4, 4]


def test_micro_conditioning_and_the_negative_prompt_matter(engine: Engine) -> None:
    info = engine.checkpoint
    changes = [
        {},
        {"negative_prompt": "blue"},
        {"micro_conditioning_aesthetic_score": 2},
        {"micro_conditioning_crop_coord": (64, 0)},
        {"prompt": "another"},
        {"guidance_scale": 2},
        {"temperature": 5},
    ]
    found = draw(engine, *(Case(row_of(info, **change)) for change in changes))
    assert len({done.tokens.tobytes() for done in found}) == len(changes)  # type: ignore[union-attr]
