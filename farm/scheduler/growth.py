"""How many workers a group should have: pure, so that a test is numbers in and a number out."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from farm.queue import LaneBacklog, Session
from farm.worker_group import short_name

SHRINK_SECONDS = 60.0  # that fewer would have sufficed before there are fewer


class Demand(NamedTuple):
    """The work for a group of workers."""

    row_steps: float  # that are queued or held by workers, as far as their number is known
    pace: float  # row-steps per second of one worker; 0 if none has measured it
    waiting: bool  # there is work at all


def demand(
    checkpoints: frozenset[str],
    backlog: Iterable[LaneBacklog],
    sessions: Iterable[Session],
    *,
    finalises: bool = False,
) -> Demand:
    """What is queued and held of checkpoints with these short names (of all if there are none), by
    what workers have measured: their pace, and the row-steps per picture of lanes, for lanes that
    none has measured the mean. With ``finalises`` there is a job for them to finalise, too."""
    sessions = [one for one in sessions if _serves(checkpoints, *one.checkpoints)]
    ready = [one for one in backlog if _serves(checkpoints, one.lane.checkpoint)]
    each: dict[str, list[float]] = {}
    for session in sessions:
        for lane, steps in session.stats.get("row_steps", {}).items():
            each.setdefault(lane, []).append(steps)
    usual = _mean([_mean(steps) for steps in each.values()])
    queued = sum(
        one.pictures * (_mean(each[str(one.lane)]) if str(one.lane) in each else usual)
        for one in ready
    )
    held = sum(float(session.stats.get("left", 0)) for session in sessions)
    paces = [_mean(list(session.paces.values())) for session in sessions if session.paces]
    at_work = any(session.held for session in sessions)
    return Demand(queued + held, _mean(paces), bool(ready) or at_work or finalises)


def workers_for(demand: Demand, *, least: int, most: int, target_seconds: float) -> int:
    """As many as do all that is there in the target time; one where nobody knows how long it
    takes, none where there is nothing, but always between ``least`` and ``most``."""
    if not demand.waiting:
        return least
    wanted = 1
    if demand.pace > 0:
        wanted = max(wanted, math.ceil(demand.row_steps / (demand.pace * target_seconds)))
    return min(max(wanted, least), most)


@dataclass(frozen=True)
class Growth:
    """How many workers a group has, and since when fewer would do.

    It grows at once. It shrinks when fewer have sufficed for a while without interruption, to the
    most that would have been needed meanwhile: a pause between two jobs ends no worker.
    """

    count: int
    fewer_since: float | None = None
    needed: int = 0  # at most, since then

    def then(self, wanted: int, now: float, patience: float) -> "Growth":
        if wanted >= self.count:
            return Growth(wanted)
        if self.fewer_since is None:
            return Growth(self.count, now, wanted)
        needed = max(self.needed, wanted)
        if now - self.fewer_since >= patience:
            return Growth(needed)
        return Growth(self.count, self.fewer_since, needed)


def _serves(checkpoints: frozenset[str], *names: str) -> bool:
    return not checkpoints or not checkpoints.isdisjoint(map(short_name, names))


def _mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0
