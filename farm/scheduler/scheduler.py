"""The scheduler: a stateless loop that grants queued lanes to workers with room.

Kill it and start another: grants are made by one script each, so nothing is half done.
"""

import logging
import random
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from pydantic import AliasChoices, Field

from farm.errors import LeaseLost, Unavailable
from farm.job import Priority
from farm.queue import Queue, Session
from farm.scheduler.planner import Room, Work, plan
from farm.settings import FarmSettings
from farm.spec import Lane

log = logging.getLogger(__name__)

WAKE_MS = 250  # longest sleep; an event of the farm wakes the loop at once


class SchedulerSettings(FarmSettings):
    """``ray_address`` empty means that workers come by themselves."""

    lease_ms: int = Field(default=10_000, ge=1_000, le=600_000)
    ray_address: str = Field(
        default="", validation_alias=AliasChoices("ray_address", "RAY_ADDRESS")
    )
    workers: int = Field(default=1, ge=0)
    worker_gpus: float = Field(default=0, ge=0)  # that one worker reserves
    worker_cpus: float = Field(default=1, ge=0)
    page: str = ""  # the farm's page, for those who look at Ray's dashboard
    end_workers: bool = False  # with the scheduler; otherwise they outlive it


class Deaths(Protocol):
    """Something that can certify that a session's process is gone."""

    def deaths(self) -> Iterable[str]: ...


@dataclass
class _Granted:
    """Pictures of urgent tasks that a session was granted since one of its beats."""

    beat: int
    pictures: int = 0


class Scheduler:
    """Grants work, ends the sessions of the dead, and keeps the queue's time.

    Args:
        queue: the farm's queue.
        lease_ms: how long a grant lasts without a beat.
        placement: certifies deaths; without one the leases' ends do.
    """

    def __init__(self, queue: Queue, *, lease_ms: int, placement: Deaths | None = None) -> None:
        self._queue = queue
        self._lease_ms = lease_ms
        self._placement = placement
        self._seen = ""
        self._dead: list[str] = []  # sessions that the queue has not been told of
        self._urgent: dict[str, _Granted] = {}

    def step(self) -> int:
        """One pass; returns how many tasks were granted."""
        if self._placement is not None:
            self._dead += self._placement.deaths()
            while self._dead:
                # Its crash reporter has told of a crash already; Ray does not know the cause.
                self._queue.end(self._dead[0], "lost")
                self._dead.pop(0)  # only now: a server that is away must still hear of it
        self._queue.tick()
        work = [Work(item.lane, item.priority, item.pictures) for item in self._queue.backlog()]
        if not work:
            return 0
        sessions = self._queue.sessions()
        self._forget_urgent({session.session for session in sessions})
        rooms = [
            Room(
                session.session,
                frozenset(session.checkpoints),
                session.room,
                self._urgent_room(session),
                frozenset(Lane.parse(lane) for lane in session.stats.get("lanes", ())),
            )
            for session in sessions
        ]
        granted = 0
        for grant in plan(work, rooms):
            try:
                leases = self._queue.lease(
                    grant.session, grant.lanes, grant.rows, self._lease_ms, lowest=grant.lowest
                )
            except LeaseLost:  # it ended since it was listed
                continue
            if grant.lowest is Priority.URGENT:
                self._urgent[grant.session].pictures += sum(lease.pictures for lease in leases)
            granted += len(leases)
        return granted

    def _urgent_room(self, session: Session) -> int:
        """What a worker keeps free for urgent tasks, less what was granted since it said so."""
        beat = session.stats.get("beat", 0)
        if session.session not in self._urgent or self._urgent[session.session].beat != beat:
            self._urgent[session.session] = _Granted(beat)
        told = session.stats.get("urgent_room", 0)
        return max(int(told) - self._urgent[session.session].pictures, 0)

    def _forget_urgent(self, living: set[str]) -> None:
        self._urgent = {name: held for name, held in self._urgent.items() if name in living}

    def run(self, stopped: threading.Event, alive: Callable[[], None] = lambda: None) -> None:
        """Step until stopped; an event, or a quarter of a second, starts the next pass.

        ``alive`` is called in each pass, for the supervisor of the process.
        """
        while not stopped.is_set():
            alive()
            try:
                self._seen = self._seen or self._queue.last_event()
                if not self.step():
                    for event in self._queue.events(self._seen, WAKE_MS):
                        self._seen = event.id
            except Unavailable as error:
                log.warning("%s; trying again", error)
                stopped.wait(0.1 + 0.4 * random.random())
