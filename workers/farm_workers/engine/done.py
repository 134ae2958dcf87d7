"""What comes out of the engine, and a row on its way to that."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from farm.errors import FarmError
from farm_workers.engine.admission import Live, Pending
from farm_workers.engine.codec import Codec, paste


@dataclass(frozen=True, eq=False)
class Done:
    """A row that left the engine: its tokens and picture, or its error."""

    key: Hashable
    index: int
    tokens: NDArray[np.uint16] | None  # (token rows, columns)
    pixels: NDArray[np.uint8] | None  # (height, width, 3)
    confidence: float  # mean probability of the tokens it painted, when each was fixed
    steps: int
    error: FarmError | None = None
    truncated: bool = False  # the prompt is longer than the text encoder's input

    @classmethod
    def failure(cls, pending: Pending, error: FarmError, steps: int = 0) -> "Done":
        return cls(pending.key, pending.row.index, None, None, 0.0, steps, error)


class Preview(NamedTuple):
    """A row half way: what the model thinks the picture will be."""

    key: Hashable
    index: int
    step: int
    steps: int
    pixels: NDArray[np.uint8]
    confidence: float


@dataclass(frozen=True, eq=False)
class Finished:
    """A row that waits to be decoded."""

    live: Live
    grid: tuple[int, int]
    tokens: Tensor
    confidence: float

    @property
    def urgent(self) -> bool:
        return self.live.urgent

    @property
    def cost(self) -> float:
        return 2.0 * len(self.tokens)

    def done(self, tokens: NDArray[np.uint16], pixels: NDArray[np.uint8]) -> Done:
        pending, live = self.live.pending, self.live
        return Done(
            pending.key,
            pending.row.index,
            tokens,
            pixels,
            self.confidence,
            live.steps_done,
            truncated=live.truncated,
        )


def decoded(codec: Codec, rows: Sequence[Finished]) -> list[Done]:
    """Rows of one grid that leave with their pictures."""
    grid = rows[0].grid
    tokens = torch.stack([held.tokens for held in rows])
    inputs = {slot: held.live.kept for slot, held in enumerate(rows) if held.live.kept is not None}
    # The inputs come behind the rows, where a padded tile often has slots left for them.
    pixels = codec.decode(torch.stack([*tokens, *inputs.values()]), grid)
    for slot, whole in zip(inputs, pixels[len(rows) :], strict=True):
        pixels[slot] = paste(pixels[slot], whole, rows[slot].live.painted, grid)
    ids = tokens.cpu().numpy().astype(np.uint16).reshape(-1, *grid)
    pictures = pixels[: len(rows)].cpu().numpy()
    return [held.done(*result) for held, *result in zip(rows, ids, pictures, strict=True)]


def mean_confidence(probability: Tensor, painted: Tensor) -> float:
    chosen = probability[painted.to(probability.device)]
    return float(chosen.mean()) if len(chosen) else 1.0
