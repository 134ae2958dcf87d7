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
    pixels: NDArray[np.uint8] | None
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

    def __init__(self, info: CheckpointInfo, rows: int = 0) -> None:
        self._info = info
        self._rows = rows or ROWS
        self._live: list[tuple[Hashable, Row, bool]] = []  # whether its picture is wanted
        self._steps = self._busy = 0

    @property
    def idle(self) -> bool:
        return not self._live

    @property
    def usage(self) -> Usage:
        return Usage(self._steps, self._busy, self._busy)

    def room(self, lane: Lane) -> int:
        return self._rows - len(self._live)

    def add(self, key: Hashable, row: Row, *, pixels: bool = True, **inputs: Any) -> None:
        self._live.append((key, row, pixels))

    def read_adapter(self, data: bytes) -> Adapter:
        raise InvalidInput("the stub engine has no adapters")

    def cancel(self, keys: Iterable[Hashable]) -> None:
        gone = set(keys)
        self._live = [live for live in self._live if live[0] not in gone]

    def step(self) -> list[StubResult]:
        live, self._live = self._live, []
        self._steps += 1
        self._busy += sum(row.spec.row_steps for _, row, _ in live)
        return [self._result(*one) for one in live]

    def preview(self, key: Hashable, index: int) -> None:
        """None: no row is ever on its way."""

    def _result(self, key: Hashable, row: Row, wanted: bool) -> StubResult:
        spec, info, seed = row.spec, self._info, row.seed
        turn, number = divmod(seed, TEXTURES)
        grid = spec.height // info.pixel_factor, spec.width // info.pixel_factor
        count = grid[0] * grid[1]
        pixels = None
        if wanted:
            size = spec.height, spec.width
            pixels = np.roll(_texture(number, size), turn % spec.height, axis=0)
        tokens, start = _tokens(number, count, info.codebook_size), turn % count
        drawn = tokens[start : start + count].reshape(grid)
        return StubResult(key, row.index, drawn, pixels, spec.row_steps)


@functools.lru_cache(maxsize=4 * TEXTURES)
def _tokens(number: int, count: int, codes: int) -> NDArray[np.uint16]:
    """So many, twice: any stretch of them is a picture's."""
    return np.tile(np.random.default_rng(number).integers(0, codes, count, dtype=np.uint16), 2)


@functools.lru_cache(maxsize=TEXTURES)
def _texture(number: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Pixels that are about as hard to compress as a photograph's."""
    random = np.random.default_rng(number)
    waves = random.uniform(0.01, 0.1, (3, 2))
    rows, columns = np.indices(size)
    smooth = [np.sin(rows * down + columns * across) for down, across in waves]
    noise = random.normal(0, 4, (*size, 3))
    return np.clip(np.stack(smooth, axis=-1) * 90 + 128 + noise, 0, 255).astype(np.uint8)
