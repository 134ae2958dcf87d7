"""The scheduler: a stateless loop that grants queued lanes to workers with room.

Kill it and start another: grants are made by one script each, so nothing is half done.
"""

import contextlib
import logging
import random
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from farm.errors import LeaseLost, Unavailable
from farm.job import Lease, Priority
from farm.queue import Command, Queue, WorkerRoom
from farm.scheduler.planner import Grant, Room, Work, even_out, plan

log = logging.getLogger(__name__)

WAKE_MS = 250  # longest sleep; an event of the farm wakes the loop at once
ALL_LANES_EVERY = 4  # one of so many grants is of all lanes, whatever the planner prefers


class Deaths(Protocol):
    """Something that can certify that workers' processes are gone, by their lives' tokens."""

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
        self._dead: set[str] = set()  # lives that the queue has not been told of
        self._urgent: dict[str, _Granted] = {}
        self._grants = 0

    def step(self) -> int:
        """One pass; returns how many tasks were granted."""
        if self._placement is not None:
            self._dead.update(self._placement.deaths())
            self._end_dead()
        self._queue.tick()
        work = [Work(item.lane, item.priority, item.pictures) for item in self._queue.backlog()]
        finalise, sessions = self._queue.rooms()
        self._forget_urgent({session.session for session in sessions})
        rooms = [self._room(session) for session in sessions]
        if granted := self._grant(work, rooms):
            return granted
        if finalise and (granted := self._grant_finalise(rooms)):
            return granted
        for session, tasks in even_out(rooms).items():
            self._queue.set_command(session, Command("share", tasks), instead_of="")
        return 0

    def _end_dead(self) -> None:
        """A life may have had several sessions, and only the queue knows the last one."""
        if not self._dead:
            return
        for session in self._queue.sessions():
            if session.info.get("life") in self._dead:
                # Its crash reporter has told of a crash already; Ray does not know the cause.
                self._queue.end(session.session, "lost")
        self._dead.clear()  # only now: a server that is away must still hear of it

    def _room(self, session: WorkerRoom) -> Room:
        return Room(
            session.session,
            session.checkpoints,
            session.room,
            self._urgent_room(session),
            session.told.lanes,
            session.held,
            0 if session.command else session.told.unbegun,
        )

    def _grant(self, work: list[Work], rooms: list[Room]) -> int:
        granted = 0
        for grant in plan(work, rooms):
            leases = self._lease(grant)
            if grant.lowest is Priority.URGENT:
                self._urgent[grant.session].pictures += sum(lease.pictures for lease in leases)
            granted += len(leases)
        return granted

    def _lease(self, grant: Grant) -> list[Lease]:
        self._grants += 1
        # The planner knows lanes, not whose turn it is in them: a tenant that has waited in a lane
        # which no worker prefers gets what it is owed from those grants that name none.
        everything = grant.lowest is Priority.BULK and self._grants % ALL_LANES_EVERY == 0
        lanes = None if everything else grant.lanes
        with contextlib.suppress(LeaseLost):  # it ended since it was listed
            return self._queue.lease(
                grant.session, lanes, grant.rows, self._lease_ms, lowest=grant.lowest
            )
        return []

    def _grant_finalise(self, rooms: list[Room]) -> int:
        """Each lease takes jobs to finalise first; where nothing else is ready, one takes only
        these."""
        rooms = [room for room in rooms if room.rows or room.urgent_rows]
        if not rooms:
            return 0
        emptiest = max(rooms, key=lambda room: (room.rows, room.session))
        return len(self._lease(Grant(emptiest.session, (), 0, Priority.URGENT)))

    def _urgent_room(self, session: WorkerRoom) -> int:
        """What a worker keeps free for urgent tasks, less what was granted since it said so."""
        granted = self._urgent.get(session.session)
        if granted is None or granted.beat != session.told.beat:
            granted = self._urgent[session.session] = _Granted(session.told.beat)
        return max(session.told.urgent_room - granted.pictures, 0)

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
