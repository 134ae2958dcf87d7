"""An engine without a model, so that everything around one can be measured and killed.

The same row gives the same tokens and pixels. With ``FARM_STUB=1`` a worker has it.
"""

import functools
import time
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from farm.errors import FarmError, InvalidInput
from farm.spec import CheckpointInfo, Lane, RenderSpec, Row
from farm_workers.render_engine import Adapter, Usage

ROWS = 1024  # held at a time
TEXTURES = 64  # different pictures; a seed names one, and how far it is turned
OTHERS_TURN = 5  # one step of so many is left to rows that are not urgent


@dataclass(slots=True)
class StubResult:
    error: ClassVar[FarmError | None] = None
    confidence: ClassVar[float] = 0.5
    truncated: ClassVar[bool] = False
    numerics: ClassVar[str] = "stub"

    key: Hashable
    index: int
    tokens: NDArray[np.uint16]
    pixels: NDArray[np.uint8] | None
    steps: int


@dataclass(slots=True)
class _Live:
    """A row in the engine."""

    key: Hashable
    row: Row
    urgent: bool
    pixels: bool  # whether its picture is wanted
    left: int  # steps


class StubEngine:
    """A step takes the same time however many rows share it. Urgent rows have steps of their own,
    and every fifth one is left to the others, as in the engine for a GPU.

    Args:
        info: of the checkpoint that it stands for.
        rows: how many it holds.
        step_seconds: how long a step takes; with 0 a row takes one step, whatever its spec says.
    """

    numerics = "stub"
    device = "nothing"

    def __init__(self, info: CheckpointInfo, rows: int = 0, step_seconds: float = 0.0) -> None:
        self._info = info
        self._rows = rows or ROWS
        self._step_seconds = step_seconds
        self._live: list[_Live] = []
        self._steps = self._busy = 0
        self._slept = 0.0

    @property
    def idle(self) -> bool:
        return not self._live

    @property
    def usage(self) -> Usage:
        return Usage(self._steps, self._busy, self._busy)

    @property
    def measured_seconds(self) -> float:
        """Of a step: a busy machine wakes a process late."""
        return self._slept / max(self._steps, 1)

    def room(self, lane: Lane) -> int:
        return self._rows - len(self._live)

    def add(
        self, key: Hashable, row: Row, *, urgent: bool = False, pixels: bool = True, **inputs: Any
    ) -> None:
        steps = row.kind.row_steps if self._step_seconds else 1
        self._live.append(_Live(key, row, urgent, pixels, steps))

    def read_adapter(self, data: bytes) -> Adapter:
        raise InvalidInput("the stub engine has no adapters")

    def cancel(self, keys: Iterable[Hashable]) -> None:
        gone = set(keys)
        self._live = [live for live in self._live if live.key not in gone]

    def step(self) -> list[StubResult]:
        began = time.monotonic()
        time.sleep(self._step_seconds)
        self._slept += time.monotonic() - began
        self._steps += 1
        classes = {live.urgent for live in self._live}
        turn = self._steps % OTHERS_TURN > 0 if len(classes) == 2 else classes == {True}
        moved = [live for live in self._live if live.urgent is turn]
        self._busy += len(moved)
        for live in moved:
            live.left -= 1
        self._live = [live for live in self._live if live.left]
        return list(self._results(live for live in moved if not live.left))

    def preview(self, key: Hashable, index: int) -> None:
        """None: a row on its way has nothing to show."""

    def _results(self, finished: Iterable[_Live]) -> Iterator[StubResult]:
        codes = self._info.codebook_size
        kind: RenderSpec | None = None
        for live in finished:
            if live.row.kind is not kind:
                kind = live.row.kind
                size, steps = (kind.height, kind.width), kind.row_steps
                grid = self._info.grid(*size)
            turn, number = divmod(live.row.seed, TEXTURES)
            tokens = _tokens(number, grid, codes)[turn % (grid[0] * grid[1])]
            pixels = None
            if live.pixels:
                pixels = np.roll(_texture(number, size), turn % size[0], axis=0)
            yield StubResult(live.key, live.row.index, tokens, pixels, steps)


@functools.lru_cache(maxsize=4 * TEXTURES)
def _tokens(number: int, grid: tuple[int, int], codes: int) -> NDArray[np.uint16]:
    """Any turn of so many is a picture's, (turns, rows, columns): parts of one array."""
    count = grid[0] * grid[1]
    drawn = np.random.default_rng(number).integers(0, codes, count, dtype=np.uint16)
    strides = drawn.itemsize, drawn.itemsize * grid[1], drawn.itemsize
    return np.lib.stride_tricks.as_strided(np.tile(drawn, 2), (count, *grid), strides)


@functools.lru_cache(maxsize=TEXTURES)
def _texture(number: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Pixels that are about as hard to compress as a photograph's."""
    random = np.random.default_rng(number)
    waves = random.uniform(0.01, 0.1, (3, 2))
    rows, columns = np.indices(size)
    smooth = [np.sin(rows * down + columns * across) for down, across in waves]
    noise = random.normal(0, 4, (*size, 3))
    return np.clip(np.stack(smooth, axis=-1) * 90 + 128 + noise, 0, 255).astype(np.uint8)
