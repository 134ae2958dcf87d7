"""What runs next: urgent work first, a floor for the rest, tiles in rotation."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

FLOOR = 0.2  # of the work that bulk rows get while urgent ones keep coming


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
