"""A virtual clock: what is ahead, in the order of its time."""

import heapq
import itertools
from collections.abc import Callable
from typing import Any


class Events:
    """``now`` is in seconds since the simulation began."""

    def __init__(self) -> None:
        self.now = 0.0
        self._ahead: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()  # events of the same time keep their order

    def after(self, seconds: float, act: Callable[..., None], *arguments: Any) -> None:
        """Call ``act`` then; never, if that is infinite."""
        if seconds != float("inf"):
            event = (self.now + seconds, next(self._numbers), act, arguments)
            heapq.heappush(self._ahead, event)

    def go_on(self) -> None:
        """Move to the next event, and let it happen."""
        self.now, _, act, arguments = heapq.heappop(self._ahead)
        act(*arguments)
