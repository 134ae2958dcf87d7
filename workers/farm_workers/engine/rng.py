"""A row's random numbers: farm-1, counted by Philox on any device, or diffusers' own draws.

Philox4x32-10 (Salmon et al., SC 2011) in torch integers. Its key is a row's seed and its counter
(word, token, step, stream), so any number of any picture can be computed alone: no state, no
order, no dependence on the neighbours.
"""

import enum
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from farm.spec import Rng, Row

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
LOW = 0xFFFFFFFF
CACHED = 1 << 15  # counters at once on a CPU: their words stay in its cache, three times as fast


class Stream(enum.IntEnum):
    CODES = 0  # one number per code: which code a token becomes
    ORDER = 1  # one per token: which tokens stay masked
    START = 2  # one per token: which tokens of an input picture start masked


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: Tensor) -> tuple[Tensor, ...]:
    """Four 32-bit words per counter, as int64 tensors.

    The counter's parts broadcast against each other; the first rounds then act on the small
    parts alone, which is a quarter of the work. ``seed`` is an int64 tensor with the 64 bits.
    """
    word0, word1, word2, word3 = counter
    key0, key1 = seed & LOW, (seed >> 32) & LOW
    for _ in range(ROUNDS):
        product0 = (word0 & LOW) * MULTIPLIERS[0]
        product1 = (word2 & LOW) * MULTIPLIERS[1]
        word0, word1, word2, word3 = (
            (product1 >> 32) ^ (word1 ^ key0),
            product1,
            (product0 >> 32) ^ (word3 ^ key1),
            product0,
        )
        key0, key1 = (key0 + WEYL[0]) & LOW, (key1 + WEYL[1]) & LOW
    return word0 & LOW, word1 & LOW, word2 & LOW, word3 & LOW


def uniforms(seed: Tensor, steps: Tensor, tokens: Tensor, stream: Stream) -> Tensor:
    """One number in (0, 1) for each step and token: the first word of their counter."""
    zero = torch.zeros((), dtype=torch.int64, device=seed.device)
    counter = (zero, tokens, steps[..., None], zero + int(stream))
    return unit(philox(counter, seed[..., None])[0])


def exponentials(seed: Tensor, tokens: Tensor, step: Tensor, codes: int) -> Tensor:
    """One Exp(1) number per token and code, (tokens, codes): the smallest of E / p wins the race.

    Code c is word c mod 4 of the counter's word c div 4.
    """
    return exponential(race_words(seed, tokens, step, codes))


def race_words(seed: Tensor, tokens: Tensor, step: Tensor, codes: int) -> Tensor:
    """The integers of a race; seeds and steps are given for all tokens or for each."""
    if tokens.device.type == "cpu" and seed.dim() == 0:
        words = _race_words_numpy(int(seed), tokens.numpy(), int(step), codes)
        return torch.from_numpy(words.view(np.int64))
    quads = torch.arange((codes + 3) // 4, dtype=torch.int64, device=tokens.device)
    zero = torch.zeros((), dtype=torch.int64, device=tokens.device)
    counter = (quads, tokens[..., None], step[..., None], zero + int(Stream.CODES))
    words = philox(counter, seed[..., None])
    return torch.stack(words, dim=-1).flatten(-2)[..., :codes]


def _race_words_numpy(
    seed: int, tokens: NDArray[np.int64], step: int, codes: int
) -> NDArray[np.uint64]:
    """The same integers from numpy, whose 64-bit products are twice as fast on a CPU."""
    quads = (codes + 3) // 4
    words = np.empty((len(tokens), quads, 4), dtype=np.uint64)
    block = max(CACHED // quads, 1)
    for start in range(0, len(tokens), block):
        part = slice(start, start + block)
        for index, word in enumerate(_philox_numpy(seed, tokens[part], step, quads)):
            words[part, :, index] = word
    return words.reshape(len(tokens), 4 * quads)[:, :codes]


def _philox_numpy(
    seed: int, tokens: NDArray[np.int64], step: int, quads: int
) -> tuple[NDArray[np.uint64], ...]:
    low, half = np.uint64(LOW), np.uint64(32)
    multipliers = [np.uint64(number) for number in MULTIPLIERS]
    word0 = np.arange(quads, dtype=np.uint64)[None]
    word1 = tokens.astype(np.uint64)[:, None]
    word2 = np.full((1, 1), step, dtype=np.uint64)
    word3 = np.full((1, 1), int(Stream.CODES), dtype=np.uint64)
    key0, key1 = seed & LOW, (seed >> 32) & LOW
    for _ in range(ROUNDS):
        product0, product1 = word0 * multipliers[0], word2 * multipliers[1]
        word0 = (product1 >> half) ^ (word1 ^ np.uint64(key0))
        word2 = (product0 >> half) ^ (word3 ^ np.uint64(key1))
        word1, word3 = np.bitwise_and(product1, low), np.bitwise_and(product0, low)
        key0, key1 = (key0 + WEYL[0]) & LOW, (key1 + WEYL[1]) & LOW
    return word0, word1, word2, word3


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
        self.seed, self._steps = signed(seed), torch.arange(steps)
        self._order: Tensor | None = None

    def start(self, seq_len: int) -> Tensor:
        first = self._steps[:1]
        return uniforms(self.seed, first, torch.arange(seq_len), Stream.START)[0]

    def race(self, step: int, unknown: Tensor, codes: int) -> Tensor:
        tokens = unknown.nonzero()[:, 0]
        return exponentials(self.seed, tokens, self._steps[step], codes)

    def order(self, step: int, seq_len: int) -> Tensor:
        if self._order is None:  # every step at once costs little more than one
            tokens = torch.arange(seq_len)
            self._order = uniforms(self.seed, self._steps, tokens, Stream.ORDER)
        return self._order[step]


class TorchDraws:
    """The order and shapes of upstream's draws, so that the generator gives the same numbers."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(signed(seed).item())

    def start(self, seq_len: int) -> Tensor:
        return torch.rand(seq_len, generator=self.generator)

    def race(self, step: int, unknown: Tensor, codes: int) -> Tensor:
        numbers = torch.empty(len(unknown), codes)
        return numbers.exponential_(1, generator=self.generator)[unknown]

    def order(self, step: int, seq_len: int) -> Tensor:
        return torch.zeros(seq_len).uniform_(0, 1, generator=self.generator)


def signed(seed: int) -> Tensor:
    """The 64 bits of a seed as torch holds them."""
    return torch.tensor(seed - 2**64 if seed >= 2**63 else seed)
