"""An engine without a model (``FARM_STUB=1``): rows are finished at once, so that everything around
it can be measured and killed. The same row gives the same tokens and pixels."""

import functools
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farm.errors import FarmError, InvalidInput
from farm.spec import CheckpointInfo, Lane, Row
from farm_workers.render_engine import Adapter, Usage

ROWS = 1024  # held at a time
TEXTURES = 64  # different pictures; a seed names one, and how far it is turned


@dataclass(frozen=True)
class StubResult:
    key: Hashable
    index: int
    tokens: NDArray[np.uint16]
    pixels: NDArray[np.uint8]
    steps: int
    error: FarmError | None = None
    confidence: float = 0.5
    truncated: bool = False
    numerics: str = "stub"


class StubEngine:
    """Args:
    info: of the checkpoint that it stands for.
    rows: how many it holds.
    """

    numerics = "stub"
    device = "nothing"

    def __init__(self, info: CheckpointInfo, rows: int = 0) -> None:
        self._info = info
        self._rows = rows or ROWS
        self._live: list[tuple[Hashable, Row]] = []
        self._steps = self._busy = 0

    @property
    def idle(self) -> bool:
        return not self._live

    @property
    def usage(self) -> Usage:
        return Usage(self._steps, self._busy, self._busy)

    def room(self, lane: Lane) -> int:
        return self._rows - len(self._live)

    def add(self, key: Hashable, row: Row, **inputs: Any) -> None:
        self._live.append((key, row))

    def read_adapter(self, data: bytes) -> Adapter:
        raise InvalidInput("the stub engine has no adapters")

    def cancel(self, keys: Iterable[Hashable]) -> None:
        gone = set(keys)
        self._live = [(key, row) for key, row in self._live if key not in gone]

    def step(self) -> list[StubResult]:
        live, self._live = self._live, []
        self._steps += 1
        self._busy += sum(row.spec.row_steps for _, row in live)
        return [self._result(key, row) for key, row in live]

    def preview(self, key: Hashable, index: int) -> None:
        """None: no row is ever on its way."""

    def _result(self, key: Hashable, row: Row) -> StubResult:
        spec, seed = row.spec, row.seed
        grid = spec.height // self._info.pixel_factor, spec.width // self._info.pixel_factor
        tokens, pixels = _texture(seed % TEXTURES, grid, (spec.height, spec.width), self._info)
        turn = seed // TEXTURES
        return StubResult(
            key,
            row.index,
            np.roll(tokens, turn % tokens.size),
            np.roll(pixels, turn % spec.height, axis=0),
            spec.row_steps,
        )


@functools.lru_cache(maxsize=TEXTURES)
def _texture(
    number: int, grid: tuple[int, int], size: tuple[int, int], info: CheckpointInfo
) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Tokens, and pixels that are about as hard to compress as a photograph's."""
    random = np.random.default_rng(number)
    tokens = random.integers(0, info.codebook_size, grid, dtype=np.uint16)
    waves = random.uniform(0.01, 0.1, (3, 2))
    rows, columns = np.indices(size)
    smooth = [np.sin(rows * down + columns * across) for down, across in waves]
    noise = random.normal(0, 4, (*size, 3))
    return tokens, np.clip(np.stack(smooth, axis=-1) * 90 + 128 + noise, 0, 255).astype(np.uint8)
