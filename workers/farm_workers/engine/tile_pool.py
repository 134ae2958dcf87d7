"""The tiles of an engine: which row goes into which, how many are kept, and which runs next."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

from farm.spec import Rng
from farm_workers.engine.row import Pending
from farm_workers.engine.tile import FixedTile, Model, RowTile, Tile
from farm_workers.render_engine import Usage

FULL_WIDTH_TOKENS = 1024  # of a row; tiles of larger grids are narrower
MAX_IDLE = 8  # tiles without rows that are kept; they cost memory, a new one costs time
FLOOR = 0.2  # of the work that bulk rows get while urgent ones keep coming


class Kind(NamedTuple):
    """Rows of one kind share a tile."""

    grid: tuple[int, int]
    urgent: bool
    on_host: bool  # sampled by the host: always on a CPU, and for torch's own random numbers


class TilePool:
    """The tiles of an engine: one for each kind of row, made when needed and kept while used."""

    def __init__(self, model: Model, *, width: int) -> None:
        self._model, self._width = model, width
        self._tiles: dict[Kind, Tile] = {}
        self._usage = Usage()

    def __iter__(self) -> Iterator[Tile]:
        return iter(self._tiles.values())

    @property
    def live(self) -> list[Tile]:
        return [tile for tile in self if tile.rows]

    @property
    def usage(self) -> Usage:
        return self._usage._replace(memory=self._model.device.memory)

    def step(self, tile: Tile) -> None:
        """One denoising step of a tile's rows, counted."""
        tile.step()
        steps, busy, computed, _ = self._usage
        self._usage = Usage(steps + 1, busy + tile.busy, computed + tile.computed)

    def kind(self, pending: Pending) -> Kind:
        spec = pending.row.spec
        on_host = self._model.by_row or spec.rng is Rng.TORCH
        grid = self._model.info.grid(spec.height, spec.width)
        return Kind(grid, pending.urgent, on_host)

    def next(self, waiting: Sequence[Pending]) -> Pending | None:
        """The row to admit now: the first one that its tile has room for.

        Rows that need one half-slot may overtake one that needs two, and where no more rows wait
        than fit into a tile, the one with most steps goes first, so that the tile stays full to
        the end. No row is overtaken for ever.
        """
        order = waiting
        if len(waiting) <= 2 * self._width:
            patient = sorted(waiting, key=lambda held: held.row.spec.row_steps, reverse=True)
            order = sorted(patient, key=self._may_wait)  # stable
        closed: set[Kind] = set()
        for pending in order:
            kind = self.kind(pending)
            tile = self._tiles.get(kind)
            if kind in closed:
                continue
            if tile is None or tile.room >= pending.halves:
                for other in waiting[: waiting.index(pending)]:
                    other.overtaken += self.kind(other) == kind
                return pending
            if tile.room == 0 or not self._may_wait(pending):
                closed.add(kind)
        return None

    def _may_wait(self, pending: Pending) -> bool:
        """Whether other rows may still overtake it."""
        return pending.overtaken < 2 * self._width

    def tile(self, pending: Pending) -> Tile:
        """The tile of that row's kind; of the idle ones only some are kept beside a new one."""
        kind = self.kind(pending)
        if kind not in self._tiles:
            for old in self._idle(captured=False)[:-MAX_IDLE]:
                del self._tiles[old]
            self._tiles[kind] = self._make(kind)
        return self._tiles[kind]

    def make_room(self, *, captured: bool) -> None:
        """Give up the memory of what is kept for later rows, and of tiles without rows: those with
        a CUDA graph, or the others."""
        self._model.forget()
        for kind in self._idle(captured=captured):
            del self._tiles[kind]
        self._model.device.give_back()

    def _idle(self, *, captured: bool) -> list[Kind]:
        return [
            kind
            for kind, tile in self._tiles.items()
            if not tile.rows and tile.captured is captured
        ]

    def _make(self, kind: Kind) -> Tile:
        width = self.width_of(kind.grid, urgent=kind.urgent)
        if self._model.by_row:
            return RowTile(self._model, kind.grid, width=width, urgent=kind.urgent)
        tile = FixedTile(
            self._model, kind.grid, width=width, urgent=kind.urgent, on_host=kind.on_host
        )
        if self._model.device.graphs and kind.grid == self._native and not kind.on_host:
            tile.capture()
        return tile

    @property
    def _native(self) -> tuple[int, int]:
        """The token grid of the checkpoint's own size."""
        info = self._model.info
        return info.grid(info.native_height, info.native_width)

    def width_of(self, grid: tuple[int, int], *, urgent: bool) -> int:
        """Guided rows that step together: fewer of a large grid, by a fixed rule.

        An urgent row whose tile has a fixed shape pays for its own slot alone.
        """
        if urgent and not self._model.by_row:
            return 1
        return max(min(self._width, self._width * FULL_WIDTH_TOKENS // (grid[0] * grid[1])), 1)

    def drop(self, tile: Tile) -> None:
        """Forget a tile and the rows in it."""
        self._tiles = {kind: other for kind, other in self._tiles.items() if other is not tile}
        self._model.device.give_back()

    def warm_up(self) -> None:
        """The tiles of the checkpoint's own size, and CUDA graphs of all their work."""
        if self._model.by_row:
            return
        for urgent in (False, True):
            kind = Kind(self._native, urgent, on_host=False)
            self._tiles[kind] = self._make(kind)
        self._model.capture(self._native, {tile.width for tile in self})


class Work(Protocol):
    """A bounded piece of work: admitting a row, a tile's step, decoding a tile."""

    @property
    def urgent(self) -> bool: ...

    @property
    def cost(self) -> float:
        """Tokens through the transformer, as many as are computed."""


W = TypeVar("W", bound=Work)


class StepPolicy:
    """Remembers only what each tile has had and how much bulk work is owed."""

    def __init__(self) -> None:
        self._owed = 0.0  # of bulk work, while urgent work goes first
        self._spent: dict[int, float] = {}  # of each tile, by identity

    def choose(self, ready: Sequence[W], tiles: Sequence[W]) -> W | None:
        """The next of the works that are ``ready`` at once or, after them, of the live ``tiles``.

        Works of the first kind fill and empty tiles, so they go before the steps of their class.
        """
        urgent = [work for work in (*ready, *tiles) if work.urgent]
        bulk = [work for work in (*ready, *tiles) if not work.urgent]
        if not urgent:
            self._owed = 0.0
            return self._take(bulk, tiles) if bulk else None
        if bulk and self._owed >= min(work.cost for work in bulk):
            chosen = self._take(bulk, tiles)
            self._owed -= chosen.cost  # below zero after a dearer one
            return chosen
        chosen = self._take(urgent, tiles)
        if bulk:
            self._owed += chosen.cost * FLOOR / (1 - FLOOR)
        return chosen

    def _take(self, works: list[W], tiles: Sequence[W]) -> W:
        """The first work that is no tile, or the tile that has had least."""
        live = {id(tile) for tile in tiles}
        if id(works[0]) not in live:
            return works[0]
        # A tile that was away starts level with the one that had least, not with a credit.
        level = min((spent for tile, spent in self._spent.items() if tile in live), default=0.0)
        self._spent = {tile: self._spent.get(tile, level) - level for tile in live}
        chosen = min(works, key=lambda work: self._spent[id(work)])
        self._spent[id(chosen)] += chosen.cost
        return chosen
