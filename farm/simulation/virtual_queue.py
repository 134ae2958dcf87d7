"""The queue's own scripts on a real server, with a clock that is handed in."""

import collections
from collections.abc import Callable, Mapping
from typing import Any

import redis

from farm.job import Lease, Priority
from farm.queue import MAX_ROWS, LaneBacklog, Queue
from farm.queue.scripts import read_scripts

EPOCH_MS = 1_700_000_000_000  # of the virtual clock; scripts expect times like today's

_REAL = "redis.call('TIME')"
_HANDED_IN = "{math.floor(KEYS[2] / 1000), KEYS[2] % 1000 * 1000}"
_GRANTING = {"lease", "complete"}  # the last task of a job brings the one that finalises it


def with_virtual_clock(scripts: Mapping[str, str]) -> dict[str, str]:
    """The scripts, with the milliseconds in ``KEYS[2]`` for the server's time.

    Raises:
        ValueError: a script does not ask the server for the time where it is expected to.
    """
    for name, source in scripts.items():
        if source.count(_REAL) != 1:
            raise ValueError(f"the script {name!r} does not read the clock once")
    return {name: source.replace(_REAL, _HANDED_IN) for name, source in scripts.items()}


class VirtualQueue(Queue):
    """A queue whose time is ``clock``; it counts calls, and notes who was granted tasks.

    Args:
        client: of a server that nothing else uses.
        clock: seconds since the simulation began.
    """

    def __init__(self, client: "redis.Redis", clock: Callable[[], float]) -> None:
        super().__init__(client, scripts=with_virtual_clock(read_scripts()))
        self._clock = clock
        self.calls: collections.Counter[str] = collections.Counter()
        self.granted: set[str] = set()  # sessions that may have something new in their inbox
        self.backlog_until = 0.0  # when work that is not urgent was last seen waiting

    def now_ms(self) -> int:
        return EPOCH_MS + int(self._clock() * 1000)

    @property
    def _keys(self) -> list[Any]:
        return [self._prefix, self.now_ms()]

    def delivered(self, session: str) -> list[Lease]:
        """What ``inbox`` would return, without waiting."""
        key = f"{self._prefix}inbox:{session}"
        popped: Any = self.client.lmpop(1, key, direction="LEFT", count=MAX_ROWS)
        return self._leases(session, popped[1]) if popped else []

    def backlog(self) -> list[LaneBacklog]:
        waiting = super().backlog()
        if any(lane.priority is not Priority.URGENT for lane in waiting):
            self.backlog_until = self._clock()
        return waiting

    def _run(self, name: str, *arguments: Any) -> Any:
        self.calls[name] += 1
        reply = super()._run(name, *arguments)
        if name in _GRANTING and reply != "[]":
            self.granted.add(arguments[0])
        return reply
