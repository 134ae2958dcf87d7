"""The tiles of an engine: one for each kind of row, made when needed and kept while used."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from farm.errors import OutOfMemory
from farm.spec import Rng
from farm_workers.engine.admission import Pending
from farm_workers.engine.checkpoint import Parts
from farm_workers.engine.device_tile import DeviceTile
from farm_workers.engine.tiles import Tile

FULL_WIDTH_TOKENS = 1024  # of a row; tiles of larger grids are narrower
MAX_IDLE = 8  # tiles without rows that are kept; they cost memory, a new one costs time


class Kind(NamedTuple):
    """Rows of one kind share a tile."""

    grid: tuple[int, int]
    halves: int  # 2 with guidance
    urgent: bool
    on_host: bool  # sampled by the host: always on a CPU, and for torch's own random numbers


class TilePool:
    """``width`` guided rows step together, or twice as many that are not guided."""

    def __init__(self, parts: Parts, *, width: int) -> None:
        self._parts, self._width = parts, width
        self._tiles: dict[Kind, Tile] = {}

    def __iter__(self) -> Iterator[Tile]:
        return iter(self._tiles.values())

    @property
    def live(self) -> list[Tile]:
        return [tile for tile in self if tile.rows]

    def kind(self, pending: Pending) -> Kind:
        spec = pending.row.spec
        halves = 2 if spec.guidance_scale > 1.0 else 1
        on_host = self._parts.device.type == "cpu" or spec.rng is Rng.TORCH
        grid = self._parts.info.grid(spec.height, spec.width)
        return Kind(grid, halves, pending.urgent, on_host)

    def has_room(self, pending: Pending) -> bool:
        tile = self._tiles.get(self.kind(pending))
        return tile is None or tile.room > 0

    def tile(self, pending: Pending) -> Tile:
        """The tile of that row's kind; idle ones of other kinds make room for a new one.

        Raises:
            OutOfMemory: it does not fit, even after that.
        """
        kind = self.kind(pending)
        if kind not in self._tiles:
            self._drop_idle(keep=MAX_IDLE)
            try:
                self._tiles[kind] = self._make(kind)
            except torch.cuda.OutOfMemoryError:
                self._drop_idle(keep=0)
                torch.cuda.empty_cache()
                self._tiles[kind] = or_out_of_memory(lambda: self._make(kind), self._width)
        return self._tiles[kind]

    def _drop_idle(self, *, keep: int) -> None:
        idle = [kind for kind, tile in self._tiles.items() if not tile.rows]
        for kind in idle[: max(len(idle) - keep, 0)]:
            del self._tiles[kind]

    def _make(self, kind: Kind) -> Tile:
        make = Tile if kind.on_host else DeviceTile
        width = self.width_of(kind.grid) * 2 // kind.halves
        return make(self._parts, kind.grid, halves=kind.halves, width=width, urgent=kind.urgent)

    def width_of(self, grid: tuple[int, int]) -> int:
        """Guided rows that step together: fewer of a large grid, by a fixed rule."""
        return max(min(self._width, self._width * FULL_WIDTH_TOKENS // (grid[0] * grid[1])), 1)

    def drop(self, tile: Tile) -> None:
        """Forget a tile and the rows in it."""
        self._tiles = {kind: other for kind, other in self._tiles.items() if other is not tile}
        torch.cuda.empty_cache()

    def warm_up(self) -> None:
        """On a GPU: the tiles of the checkpoint's own size, each with its step as a CUDA graph.

        Where memory is short there are fewer of them, never narrower ones.
        """
        if self._parts.device.type != "cuda":
            return
        info = self._parts.info
        grid = info.grid(info.native_height, info.native_width)
        kinds = [
            Kind(grid, halves, urgent, on_host=False)
            for halves, urgent in ((2, False), (2, True), (1, False), (1, True))
        ]
        self._tiles[kinds[0]] = or_out_of_memory(lambda: self._captured(kinds[0]), self._width)
        for kind in kinds[1:]:
            try:
                self._tiles[kind] = self._captured(kind)
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                return

    def _captured(self, kind: Kind) -> Tile:
        tile = self._make(kind)
        assert isinstance(tile, DeviceTile)
        tile.capture()
        return tile


def or_out_of_memory(make: Callable[[], Tile], width: int) -> Tile:
    try:
        return make()
    except torch.cuda.OutOfMemoryError:
        raise OutOfMemory(
            f"a tile of {width} guided rows does not fit on the GPU",
            hint="load with a smaller tile or fewer rows",
        ) from None
