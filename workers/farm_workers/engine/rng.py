"""A row's random numbers: farm-1, counted by Philox on any device, or diffusers' own draws.

Philox4x32-10 (Salmon et al., SC 2011). Its key is a row's seed and its counter (word, token, step,
stream), so any number of any picture can be computed alone: no state, no order, no dependence on
the neighbours. A GPU computes the same words inside triton_sampler.py.
"""

import enum
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike, NDArray
from torch import Tensor

from farm.spec import Rng, Row

Words = NDArray[np.uint64]  # of 32 bits each, in the type of their products

MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
ROUNDS = 10
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
CACHED = 1 << 15  # counters at once: their words stay in a CPU's cache, three times as fast


class Stream(enum.IntEnum):
    CODES = 0  # one number per code: which code a token becomes
    ORDER = 1  # one per token: which tokens stay masked
    START = 2  # one per token: which tokens of an input picture start masked


def philox(counter: tuple[Words, Words, Words, Words], seed: int) -> tuple[Words, ...]:
    """Four words per counter.

    The counter's parts broadcast against each other; the first rounds then act on the small
    parts alone, which is a quarter of the work. (numpy's 64-bit products are twice as fast as
    torch's on a CPU.)
    """
    word0, word1, word2, word3 = counter
    key0, key1 = np.uint64(seed) & LOW, np.uint64(seed) >> HALF
    for _ in range(ROUNDS):
        product0, product1 = word0 * MULTIPLIERS[0], word2 * MULTIPLIERS[1]
        word0 = (product1 >> HALF) ^ (word1 ^ key0)
        word2 = (product0 >> HALF) ^ (word3 ^ key1)
        word1, word3 = product1 & LOW, product0 & LOW
        key0, key1 = (key0 + WEYL[0]) & LOW, (key1 + WEYL[1]) & LOW
    return word0, word1, word2, word3


def uniforms(seed: int, steps: int, seq_len: int, stream: Stream) -> Tensor:
    """One number in (0, 1) for each step and token: the first word of their counter."""
    zero, step = _part([0]), _part(range(steps))[:, None]
    words = philox((zero, _part(range(seq_len)), step, _part([stream])), seed)[0]
    return unit(torch.from_numpy(words.view(np.int64)))


def exponentials(seed: int, tokens: NDArray[np.int64], step: int, codes: int) -> Tensor:
    """One Exp(1) number per token and code, (tokens, codes): the smallest of E / p wins the race.

    Code c is word c mod 4 of the counter's word c div 4.
    """
    return exponential(torch.from_numpy(race_words(seed, tokens, step, codes, np.float32)))


def race_words(
    seed: int, tokens: NDArray[np.int64], step: int, codes: int, dtype: DTypeLike = np.uint64
) -> NDArray[Any]:
    """The integers of a race, (tokens, codes), as numbers of that type."""
    quads = (codes + 3) // 4
    words = np.empty((len(tokens), quads, 4), dtype=dtype)
    block, stream = max(CACHED // quads, 1), _part([Stream.CODES])
    for start in range(0, len(tokens), block):
        part = slice(start, start + block)
        counter = (_part(range(quads)), _part(tokens[part])[:, None], _part([step]), stream)
        for index, word in enumerate(philox(counter, seed)):
            words[part, :, index] = word
    return words.reshape(len(tokens), 4 * quads)[:, :codes]


def _part(numbers: ArrayLike) -> Words:
    """Of a counter."""
    return np.asarray(numbers, dtype=np.uint64)


def exponential(words: Tensor) -> Tensor:
    return unit(words).neg_().log1p_().neg_()


def unit(words: Tensor) -> Tensor:
    """32-bit integers to float32 strictly between 0 and 1, dense near 0 where races are decided."""
    numbers = words.to(torch.float32, copy=True)
    return numbers.add_(0.5).mul_(2.0**-32).clamp_max_(1 - 2.0**-24)


class Draws(Protocol):
    """What one row draws; ``step`` counts from the first step of the whole schedule."""

    def start(self, seq_len: int) -> Tensor: ...

    def race(self, step: int, unknown: Tensor, codes: int) -> Tensor:
        """Exp(1) numbers (unknown tokens, codes); ``unknown`` marks the row's masked tokens."""

    def order(self, step: int, seq_len: int) -> Tensor: ...


def draws(row: Row) -> Draws:
    return (
        TorchDraws(row.seed)
        if row.spec.rng is Rng.TORCH
        else FarmDraws(row.seed, row.spec.num_inference_steps)
    )


class FarmDraws:
    def __init__(self, seed: int, steps: int) -> None:
        self.seed, self._steps = seed, steps
        self._order: Tensor | None = None

    def start(self, seq_len: int) -> Tensor:
        return uniforms(self.seed, 1, seq_len, Stream.START)[0]

    def race(self, step: int, unknown: Tensor, codes: int) -> Tensor:
        return exponentials(self.seed, unknown.numpy().nonzero()[0], step, codes)

    def order(self, step: int, seq_len: int) -> Tensor:
        if self._order is None:  # every step at once costs little more than one
            self._order = uniforms(self.seed, self._steps, seq_len, Stream.ORDER)
        return self._order[step]


class TorchDraws:
    """The order and shapes of upstream's draws, so that the generator gives the same numbers."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def start(self, seq_len: int) -> Tensor:
        return torch.rand(seq_len, generator=self.generator)

    def race(self, step: int, unknown: Tensor, codes: int) -> Tensor:
        numbers = torch.empty(len(unknown), codes)
        return numbers.exponential_(1, generator=self.generator)[unknown]

    def order(self, step: int, seq_len: int) -> Tensor:
        return torch.zeros(seq_len).uniform_(0, 1, generator=self.generator)
