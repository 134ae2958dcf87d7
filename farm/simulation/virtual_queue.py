"""The queue's own scripts on a real server, with a clock that is handed in."""

import collections
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import redis
from redis.exceptions import RedisError

from farm.errors import FarmError
from farm.job import Lease, Priority, Receipt
from farm.queue import MAX_ROWS, Heartbeat, LaneBacklog, Outcome, Queue, encoding
from farm.queue.connection import explain
from farm.queue.scripts import read_scripts

EPOCH_MS = 1_700_000_000_000  # of the virtual clock; scripts expect times like today's

_REAL = "redis.call('TIME')"
_HANDED_IN = "{math.floor(KEYS[2] / 1000), KEYS[2] % 1000 * 1000}"
_TOGETHER = ("complete", "heartbeat", "held", "tick", "backlog", "rooms")
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
        for name in _TOGETHER:  # a pipeline expects them to be there
            client.script_load(self._scripts[name].script)
        self._clock = clock
        self.calls: collections.Counter[str] = collections.Counter()
        self._ahead: dict[str, Any] = {}  # replies that came along with an earlier call
        self.granted: set[str] = set()  # sessions that may have something new in their inbox
        self.backlog_until = 0.0  # when work that is not urgent was last seen waiting

    def now_ms(self) -> int:
        return EPOCH_MS + int(self._clock() * 1000)

    @property
    def _keys(self) -> list[Any]:
        return [self._prefix, self.now_ms()]

    def tick(self) -> None:
        """A pass of the scheduler asks for ``backlog`` and ``rooms`` next, so they come along."""
        names = ("tick", "backlog", "rooms")
        replies = self._send([(name, ()) for name in names])
        self._ahead = {name: _result(reply) for name, reply in zip(names, replies, strict=True)}

    # What many workers do at the same time, in one round trip.

    def heartbeats(self, calls: Sequence[Sequence[Any]]) -> list[Heartbeat | FarmError]:
        """``heartbeat`` of each."""
        replies = self._send([("heartbeat", arguments) for arguments in calls])
        return [one if isinstance(one, FarmError) else encoding.heartbeat(one) for one in replies]

    def completions(
        self, done: Sequence[tuple[str, Sequence[tuple[Lease, Receipt]]]]
    ) -> list[list[Outcome]]:
        """``complete_all`` of each session."""
        calls = [
            ("complete", [session, encoding.to_json([encoding.completion(*one) for one in its])])
            for session, its in done
        ]
        return [encoding.outcomes(_result(reply)) for reply in self._send(calls)]

    def delivered(self, sessions: Sequence[str]) -> list[list[Lease]]:
        """What ``inbox`` of each would return, without waiting."""
        if not sessions:
            return []
        together = self.client.pipeline(transaction=False)
        for session in sessions:
            key = f"{self._prefix}inbox:{session}"
            together.lmpop(1, key, direction="LEFT", count=MAX_ROWS)
        popped: list[Any] = together.execute()
        told = zip(sessions, popped, strict=True)
        held = iter(self._send([("held", [session, *one[1]]) for session, one in told if one]))
        return [
            [encoding.lease(row) for row in json.loads(_result(next(held)))] if one else []
            for one in popped
        ]

    def backlog(self) -> list[LaneBacklog]:
        waiting = super().backlog()
        if any(lane.priority is not Priority.URGENT for lane in waiting):
            self.backlog_until = self._clock()
        return waiting

    def _run(self, name: str, *arguments: Any) -> Any:
        if name in self._ahead:
            return self._ahead.pop(name)
        reply = super()._run(name, *arguments)
        self._note(name, arguments, reply)
        return reply

    def _send(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        """Replies, or the farm's errors."""
        if not calls:
            return []
        together = self.client.pipeline(transaction=False)
        for name, arguments in calls:
            together.evalsha(self._scripts[name].sha, len(self._keys), *self._keys, *arguments)
        replies: list[Any] = together.execute(raise_on_error=False)
        for (name, arguments), reply in zip(calls, replies, strict=True):
            self._note(name, arguments, reply)
        return [explain(one) if isinstance(one, RedisError) else one for one in replies]

    def _note(self, name: str, arguments: Sequence[Any], reply: Any) -> None:
        self.calls[name] += 1
        if name in _GRANTING and reply != "[]":
            self.granted.add(arguments[0])


def _result(reply: Any) -> Any:
    if isinstance(reply, FarmError):
        raise reply
    return reply
