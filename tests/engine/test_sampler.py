"""Random numbers, choices and the schedule."""

import math

import numpy as np
import pytest
import torch
from diffusers import AmusedScheduler

from farm.spec import CheckpointInfo, RenderRequest
from farm_workers.engine.rng import (
    FarmDraws,
    Stream,
    exponential,
    exponentials,
    philox,
    race_words,
    uniforms,
    unit,
)
from farm_workers.engine.row import schedule
from farm_workers.engine.sampler import choose, stay_masked

INFO = CheckpointInfo(
    id="x",
    revision="0",
    pixel_factor=8,
    size_multiple=8,
    native_height=64,
    native_width=64,
    default_guidance=4,
    vocab_size=1088,
    codebook_size=1024,
    mask_token_id=1087,
    text_tokens=77,
    pooled_dim=64,
    hidden_dim=64,
)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known answers of Random123, kat_vectors
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_numbers(
    counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    found = philox(np.array(counter, dtype=np.uint64)[:, None], key[0] | key[1] << 32)
    assert tuple(int(word[0]) for word in found) == words


def test_the_counter_is_word_token_step_stream() -> None:
    """Golden numbers: a change here changes every picture of rng farm-1."""
    draws = FarmDraws(2**63 + 12345, steps=12)
    unknown = torch.zeros(64, dtype=torch.bool)
    unknown[[0, 63]] = True
    words = race_words(draws.seed, np.array([0, 63]), 7, 10)
    assert words[1, 5:8].tolist() == GOLDEN_RACE
    assert [round(float(u), 9) for u in draws.order(7, 64)[:2]] == GOLDEN_ORDER
    assert [round(float(u), 9) for u in draws.start(64)[:2]] == GOLDEN_START
    # word 1 of the counter (quad 1, token 63, step 7, stream 0) is code 5
    counter = np.array([1, 63, 7, Stream.CODES], dtype=np.uint64)[:, None]
    assert int(philox(counter, draws.seed)[1][0]) == GOLDEN_RACE[0]
    race = draws.race(7, unknown, 10)
    assert torch.equal(race, exponential(torch.from_numpy(words.view(np.int64))))


GOLDEN_RACE = [211822158, 490572546, 2148862622]
GOLDEN_ORDER = [0.243411064, 0.746531129]
GOLDEN_START = [0.004584506, 0.15172191]


def test_a_race_of_many_tokens_is_drawn_in_blocks_that_do_not_show() -> None:
    tokens = np.arange(300)
    whole = race_words(7, tokens, 9, 1023)
    parts = [race_words(7, tokens[first : first + 1], 9, 1023) for first in range(300)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_uniforms_are_strictly_inside_and_races_finite() -> None:
    words = torch.tensor([0, 1, 2**31, 2**32 - 2, 2**32 - 1])
    assert bool(((unit(words) > 0) & (unit(words) < 1)).all())
    race = exponential(words)
    assert bool((race > 0).all())
    assert bool(torch.isfinite(race).all())


def test_a_race_is_a_draw_from_the_softmax() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0, 0.5, -3.0])
    count = 40_000
    race = exponentials(11, np.arange(count), 0, 6)
    codes, probability = choose(logits.expand(count, 6), race)
    expected = logits.softmax(0)
    shares = torch.bincount(codes, minlength=6) / count
    deviation = (shares - expected).abs() / (expected * (1 - expected) / count).sqrt()
    assert float(deviation.max()) < 4.5
    assert torch.equal(probability, expected[codes])


def test_uniforms_are_uniform_and_streams_differ() -> None:
    order = uniforms(5, 10, 4096, Stream.ORDER)
    start = uniforms(5, 10, 4096, Stream.START)
    for numbers in (order, start):
        counts = torch.histc(numbers, 64, 0, 1)
        chi2 = float(((counts - 640) ** 2 / 640).sum())
        assert 20 < chi2 < 120  # 63 degrees of freedom
    assert not torch.equal(order, start)


def test_only_masked_tokens_are_scored() -> None:
    probability = torch.full((1, 8), 1e-30)  # fixed ones look as bad as they can
    unknown = torch.tensor([[True, False] * 4])
    uniform = torch.linspace(0.1, 0.9, 8)[None]
    stay = stay_masked(probability, unknown, uniform, torch.tensor(100.0), torch.tensor([[3]]))
    assert int(stay.sum()) == 3
    assert not bool((stay & ~unknown).any())


@pytest.mark.parametrize(("left", "planned", "stay"), [(1, 5, 1), (2, 5, 1), (6, 5, 5), (6, 0, 0)])
def test_a_step_fixes_a_token_and_leaves_one(left: int, planned: int, stay: int) -> None:
    unknown = torch.arange(8)[None] < left
    probability = torch.rand(1, 8) + 0.1
    found = stay_masked(
        probability, unknown, torch.rand(1, 8), torch.tensor(0.0), torch.tensor([[planned]])
    )
    assert int(found.sum()) == stay


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_the_schedule_has_the_scheduler_s_numbers(kind: str) -> None:
    for steps in (1, 2, 7, 12, 20, 333):
        upstream = AmusedScheduler(1087, kind)
        upstream.set_timesteps(steps, (2, 0))
        spec = RenderRequest(prompt="x", num_inference_steps=steps).resolve(INFO, seed=0)
        found = schedule(spec, 4096, 4096, kind)
        assert found.temperatures == tuple(upstream.temperatures.tolist())
        for step in range(steps - 1):
            ratio = torch.tensor([[step + 1]]) / steps
            share = torch.cos(ratio * math.pi / 2) if kind == "cosine" else 1 - ratio
            assert found.planned[step] == max(int((4096 * share).floor()), 1)
        assert found.planned[-1] == 0
