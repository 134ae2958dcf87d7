"""A row's random numbers: farm-1 (counter-based, any device) or diffusers' own draws."""

from typing import Protocol

import torch
from torch import Tensor

from farm.spec import Rng, Row
from farm_workers.engine.philox import Stream, exponentials, uniforms


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
