"""One simulated worker: an engine that takes its time, and the rules of a real worker around it.

The rules are those of ``farm_workers.worker``: ``queue_session.py`` for heartbeats, draining and
what a worker does without a scheduler, ``hand_back.py`` for what goes back, ``lease_table.py`` for
the room, ``engine_loop.py`` and the engine's ``tile_pool.py`` for what runs first.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from farm.errors import LeaseLost
from farm.job import Lease, Priority, Receipt
from farm.queue import Command, Heartbeat, Outcome, Progress, Queue, Verdict, encoding
from farm.simulation.service import Service
from farm.simulation.workload import checkpoint_of
from farm.spec import Lane
from farm_workers.worker.queue_session import (
    EARLY_HEARTBEAT_SECONDS,
    HEARTBEAT_SECONDS,
    HUNGRY_SECONDS,
)
from farm_workers.worker.worker import BUFFERED_ENGINES

BULK_SHARE = 0.2  # of the engine that bulk rows keep beside urgent ones, as in its step policy
LOAD_SECONDS = 0.05  # to read a chunk and its inputs
PUBLISH_SECONDS = 0.2  # from a task's last picture to its receipt
DRAIN_SECONDS = 20.0  # as FARM_DRAIN_SECONDS has it
ENOUGH = 1e-9  # seconds of work that are none


@dataclasses.dataclass
class HeldTask:
    """A lease and how far it is."""

    lease: Lease
    work: float  # seconds of the engine, all of it
    left: float
    loaded_at: float
    published_at: float | None = None  # when its receipt is ready, once it is rendered
    started_at: float | None = None

    @property
    def begun(self) -> bool:
        return self.started_at is not None

    @property
    def to_render(self) -> int:
        if self.published_at is not None or not self.work:
            return 0
        return min(math.ceil(self.lease.pictures * self.left / self.work), self.lease.pictures)

    @property
    def progress(self) -> Progress:
        rendered = self.lease.pictures - self.to_render
        alone = self.lease.alone and rendered < self.lease.pictures
        return Progress(rendered, 0, rendered if alone else None)


class SimulatedWorker:
    """A worker with one engine for each checkpoint on one GPU.

    Args:
        queue: of the farm.
        name, session: of the worker, and of this life of it.
        services: by size.
        rows: that one engine holds.
        steps: of each picture.
        lease_ms: how long a lease lasts after a heartbeat.
        now: when it starts.
        busy: told of each stretch in which the engine works: from, to.
    """

    def __init__(
        self,
        queue: Queue,
        name: str,
        session: str,
        services: Mapping[str, Service],
        *,
        rows: int,
        steps: int,
        lease_ms: int,
        now: float,
        busy: Callable[[float, float], None],
    ) -> None:
        self.queue, self.session = queue, session
        self.held: dict[str, HeldTask] = {}
        self._services, self._steps, self._lease_ms, self._busy = services, steps, lease_ms, busy
        self._capacity = BUFFERED_ENGINES * rows * len(services)
        self._at = self._last_grant = now
        self._last_heartbeat = self._next_heartbeat = now
        self._heartbeats = self._room_told = 0
        self._drain_until: float | None = None
        self._paces: dict[str, float] = {}  # by lane, row-steps per second, as an engine measures
        checkpoints = sorted(checkpoint_of(size) for size in services)
        queue.register(session, name, checkpoints, {"capacity": self._capacity})

    def take(self, leases: Sequence[Lease], now: float) -> None:
        """Grants come in."""
        self.advance(now)
        for lease in leases:
            self._last_grant = now
            if lease.key in self.held:
                continue
            work = 0.0 if lease.finalise else self._work(lease)
            self.held[lease.key] = HeldTask(lease, work, work, now + LOAD_SECONDS)

    def _work(self, lease: Lease) -> float:
        lane = Lane.parse(lease.lane)
        service = self._services[f"{lane.height}x{lane.width}"]
        if lease.priority is Priority.URGENT:
            each = service.urgent(lane, self._steps)
        elif lease.alone:
            each = service.alone(lane, self._steps)
        else:
            each = service.bulk(lane, self._steps)
        self._paces[lease.lane] = round(self._steps / each, 1)
        return each * lease.pictures

    # The engine.

    def advance(self, now: float) -> None:
        """Let the engine work until ``now``."""
        while self._at < now:
            urgent, bulk = self._first(urgent=True), self._first(urgent=False)
            shares = {id(task): (task, 1.0) for task in (urgent, bulk) if task is not None}
            if urgent is not None and bulk is not None:
                shares = {1: (urgent, 1 - BULK_SHARE), 2: (bulk, BULK_SHARE)}
            ends = [task.left / share for task, share in shares.values()]
            loads = [task.loaded_at - self._at for task in self.held.values()]
            seconds = min([now - self._at, *ends, *(load for load in loads if load > 0)])
            if shares:
                self._busy(self._at, self._at + seconds)
            for task, share in shares.values():
                task.started_at = self._at if task.started_at is None else task.started_at
                task.left -= share * seconds
            self._at += seconds
            self._note_rendered()

    def _first(self, *, urgent: bool) -> HeldTask | None:
        """What its class's share goes to: the tasks of a class follow each other."""
        for task in self.held.values():
            is_urgent = task.lease.priority is Priority.URGENT
            if is_urgent is urgent and task.published_at is None and task.loaded_at <= self._at:
                return task
        return None

    def _note_rendered(self) -> None:
        for task in self.held.values():
            if task.published_at is None and task.left <= ENOUGH and task.loaded_at <= self._at:
                task.left = 0.0
                task.published_at = self._at + PUBLISH_SECONDS

    # The session.

    def next_event(self) -> float:
        """When it has to act, if nothing comes in until then."""
        times = [self._next_heartbeat]
        if self._drain_until is not None:
            times.append(self._drain_until)
        times += [task.published_at for task in self.held.values() if task.published_at is not None]
        loaded = [task for task in self.held.values() if task.published_at is None]
        times += [task.loaded_at for task in loaded if task.loaded_at > self._at]
        urgent, bulk = self._first(urgent=True), self._first(urgent=False)
        if urgent is not None:
            times.append(self._at + urgent.left / (1 - BULK_SHARE if bulk else 1.0))
        elif bulk is not None:
            times.append(self._at + bulk.left)
        return min(times)

    def act(self, now: float) -> bool:
        """Whether there is something to tell the queue: what is published, or a heartbeat."""
        self.advance(now)
        if self._room() - self._room_told > self._capacity // 4:
            early = self._last_heartbeat + EARLY_HEARTBEAT_SECONDS
            self._next_heartbeat = min(self._next_heartbeat, early)
        return bool(self.published) or now >= self._next_heartbeat

    @property
    def published(self) -> list[HeldTask]:
        return [
            task
            for task in self.held.values()
            if task.published_at is not None and task.published_at <= self._at
        ]

    def reported(self, tasks: Sequence[HeldTask], outcomes: Sequence[Outcome]) -> list[HeldTask]:
        """The queue has heard of these; returns those that it did not take."""
        for task in tasks:
            del self.held[task.lease.key]
        verdicts = [outcome.verdict for outcome in outcomes]
        told = zip(tasks, verdicts, strict=True)
        return [task for task, verdict in told if verdict is not Verdict.COMMITTED]

    def heartbeat(self, now: float) -> list[Any] | None:
        """What it tells the queue, if that is due."""
        if now < self._next_heartbeat:
            return None
        self._last_heartbeat, self._next_heartbeat = now, now + HEARTBEAT_SECONDS
        self._room_told = self._room()
        self._heartbeats += 1
        at_work = [task for task in self.held.values() if task.published_at is None and task.work]
        progress = {task.lease.key: task.progress for task in at_work}
        stats = {
            "lanes": sorted({task.lease.lane for task in at_work}),
            "beat": self._heartbeats,
            "urgent_room": self._room(urgent=True),
            "unbegun": len(self._unbegun()),
            "left": sum(task.to_render for task in at_work) * self._steps,
            "paces": self._paces,
            "row_steps": dict.fromkeys(self._paces, self._steps),
        }
        return encoding.heartbeat_arguments(
            self.session, self._room_told, progress, stats, self._lease_ms
        )

    def heard(self, answer: Heartbeat, now: float) -> None:
        """The answer to its heartbeat."""
        for key in self.held.keys() - answer.held:
            del self.held[key]
        command = Command.parse(answer.command)
        if command is not None and command.kind == "share":
            self._hand_back(command.number or 0)
            self.queue.set_command(self.session, None, instead_of=answer.command)
            self._last_grant = now
        elif answer.unplanned and now - self._last_grant > HUNGRY_SECONDS:
            self._lease_for_itself()

    def _lease_for_itself(self) -> None:
        self.queue.tick()
        if room := self._room():
            self.queue.lease(self.session, None, room, self._lease_ms)
        elif room := self._room(urgent=True):
            self.queue.lease(self.session, None, room, self._lease_ms, lowest=Priority.URGENT)

    def _room(self, *, urgent: bool = False) -> int:
        if self._drain_until is not None:
            return 0
        held = sum(
            task.to_render
            for task in self.held.values()
            if not urgent or task.lease.priority is Priority.URGENT
        )
        return max(self._capacity - held, 0)

    # How it ends.

    def drain(self, now: float) -> None:
        """It takes nothing more; what it has not begun goes back."""
        if self._drain_until is None:
            self.advance(now)
            self._drain_until = now + DRAIN_SECONDS
            self.queue.set_command(self.session, Command("drain"))
            self._hand_back(len(self.held))

    @property
    def drained(self) -> bool:
        """Whether it can end: it holds nothing, or has no more time for it."""
        until = self._drain_until
        return until is not None and (not self.held or self._at >= until)

    def end(self, why: Literal["crash", "drain"]) -> None:
        """What it holds goes back; the crash reporter tells the queue of a crash."""
        with contextlib.suppress(LeaseLost):
            self.queue.end(self.session, why)

    def _unbegun(self) -> list[HeldTask]:
        """The newest first."""
        tasks = reversed(self.held.values())
        return [task for task in tasks if task.work and not task.begun]

    def _hand_back(self, most: int) -> None:
        for task in self._unbegun()[:most]:
            self.queue.fail(self.session, task.lease, "release", "the worker hands it back")
            del self.held[task.lease.key]


def receipt(lease: Lease) -> Receipt:
    done = 0 if lease.finalise else lease.pictures
    return Receipt(done=done, failed=0, size=1, part="p", part_sha256="0" * 64, numerics="n")
