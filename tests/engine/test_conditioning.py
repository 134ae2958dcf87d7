"""Prompts are computed once, kept within a bound, and encoded in tiles that change nothing."""

import pytest
import torch
from cases import Case, draw, row_of

from farm_workers.engine.conditioning import Conditioning, Lru
from farm_workers.engine.engine import Engine


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


def test_the_empty_prompt_is_encoded_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    encode = Conditioning._encode
    monkeypatch.setattr(
        Conditioning, "_encode", lambda self, texts: seen.append(texts) or encode(self, texts)
    )
    conditioning = Conditioning(engine._parts, cache_bytes=1)  # keeps only what was used last
    with torch.inference_mode():
        for prompt in ("one", "two", "three", "two"):
            conditioning.of(row_of(engine.checkpoint, prompt=prompt).spec, None)
    assert seen == [[""], ["one"], ["two"], ["three"], ["two"]]


def test_texts_of_a_tile_are_what_they_are_in_any_tile(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm_workers.engine.conditioning.TEXT_TILE", 4)
    texts = [f"picture {number}" for number in range(6)]
    with torch.inference_mode():
        alone, together = (Conditioning(engine._parts, cache_bytes=1 << 30) for _ in range(2))
        alone._width = together._width = 4
        for text in texts:
            first, second = alone.encode(text), together.encode(text, texts)
            assert torch.equal(first.hidden, second.hidden)
            assert torch.equal(first.pooled, second.pooled)
        assert len(together._texts) == 6


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


def test_strict_off_says_that_it_gives_reproducibility_up(checkpoint: object) -> None:
    loose = Engine.load(str(checkpoint), threads=1, strict=False)
    assert loose.numerics.endswith("loose")
    done = draw(loose, *(Case(row_of(loose.checkpoint, seed=seed)) for seed in range(3)))
    assert all(one.error is None for one in done)
