"""The first forward pass of rows that start all masked: it follows from the prompt alone."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from farm_workers.engine.checkpoint import Parts
from farm_workers.engine.conditioning import Conditioned, Lru


class Openings:
    """Kept while there is room: the negative prompt's is the same for nearly every row."""

    def __init__(self, parts: Parts, *, cache_bytes: int) -> None:
        self._model, self._mask_id = parts.transformer, parts.info.mask_token_id
        self._held: Lru[Tensor] = Lru(cache_bytes, lambda features: features.nbytes)

    def of(self, conditioned: Sequence[Conditioned], grid: tuple[int, int]) -> Tensor:
        """Features (halves, tokens, channels); each half is a pass by itself, kept or not."""
        return torch.cat(
            [
                self._held.get((given.key, grid), partial(self._make, given.packed, grid))
                for given in conditioned
            ]
        )

    def _make(self, packed: Tensor, grid: tuple[int, int]) -> Tensor:
        tokens = torch.full((1, grid[0] * grid[1]), self._mask_id, device=packed.device)
        return self._model.features(tokens, self._model.layout.views(packed[None, None]), grid)[0]
