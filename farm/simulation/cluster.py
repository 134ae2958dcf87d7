"""A simulated cluster: machines come when they are wanted, are lost and are replaced."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from farm.queue.placed_workers import PlacedWorker, WorkerState
from farm.simulation.events import Events
from farm.simulation.fleet import MACHINE_SECONDS, START_SECONDS, Fleet
from farm.simulation.report import Usage
from farm.worker_group import WorkerGroup

GROUP = "gpu"  # its workers are gpu-0, gpu-1 and so on


class Host(Protocol):
    """Where the workers are."""

    def start_worker(self, gpu: int) -> None: ...

    def lose_worker(self, gpu: int) -> None:
        """Without a word to the queue; nothing if none runs there."""

    def crash_worker(self, gpu: int) -> bool:
        """Whether one ran there."""

    def drain_worker(self, gpu: int) -> None:
        """``SimulatedCluster.worker_ended`` says when it has ended."""


@dataclass
class _Machine:
    gpus: range
    life: int = 0  # which of its lives: what was ahead of an earlier one does not happen
    there: bool = False
    coming: bool = False
    wanted: bool = False
    workers: set[int] = field(default_factory=set)  # GPUs whose worker runs or starts


class SimulatedCluster:
    """What Ray and a cloud do for a ``Placer``; workers are placed by whole machines.

    It certifies no deaths, so the leases of a lost machine have to run out.
    """

    def __init__(
        self, fleet: Fleet, events: Events, host: Host, usage: Usage, draw: random.Random
    ) -> None:
        self._fleet, self._events, self._host = fleet, events, host
        self._usage, self._draw = usage, draw
        self._machines = [_Machine(gpus) for gpus in fleet.machines]

    @property
    def group(self) -> WorkerGroup:
        return WorkerGroup(GROUP, self._fleet.least, self._fleet.gpus, gpus=1)

    @property
    def workers(self) -> Sequence[PlacedWorker]:
        return [
            PlacedWorker(f"{GROUP}-{gpu}", _state(machine, gpu))
            for machine in self._machines
            if machine.wanted or machine.there
            for gpu in machine.gpus
        ]

    def deaths(self) -> list[str]:
        return []

    def close(self, *, end_workers: bool) -> None:
        """Nothing: machines outlive the scheduler."""

    def start(self) -> None:
        """The least that there is, at once."""
        for machine in self._machines:
            machine.wanted = machine.gpus.start < self._fleet.least
            if machine.wanted:
                self._arrive(machine, first=True)

    def want(self, counts: Mapping[str, int]) -> None:
        for machine in self._machines:
            machine.wanted = machine.gpus.start < counts[GROUP]
            if machine.wanted and not machine.there and not machine.coming:
                machine.coming = True
                self._events.after(MACHINE_SECONDS, self._arrive, machine)
            elif machine.there:
                self._want_workers(machine)

    def worker_ended(self, gpu: int) -> None:
        """It was drained."""
        machine = self._machines[gpu // self._fleet.machine_gpus]
        machine.workers.discard(gpu)
        if not machine.workers and not machine.wanted:
            self._leave(machine)

    def _want_workers(self, machine: _Machine) -> None:
        for gpu in machine.gpus:
            if not machine.wanted and gpu in machine.workers:
                self._host.drain_worker(gpu)
            elif machine.wanted and gpu not in machine.workers:
                self._start_worker(machine, gpu, START_SECONDS)

    def _arrive(self, machine: _Machine, *, first: bool = False) -> None:
        machine.coming = False
        if not machine.wanted:
            return
        machine.there = True
        self._usage.gpus_come(self._events.now, len(machine.gpus))
        for gpu in machine.gpus:
            # Workers that all started at once would send their heartbeats at once for ever.
            self._start_worker(machine, gpu, self._draw.random() if first else START_SECONDS)
            self._await_crash(machine, gpu)
        loss = self._fleet.next_loss(self._draw)
        self._events.after(loss, self._lose, machine, machine.life)

    def _start_worker(self, machine: _Machine, gpu: int, seconds: float) -> None:
        machine.workers.add(gpu)
        self._events.after(seconds, self._started, machine, gpu, machine.life)

    def _started(self, machine: _Machine, gpu: int, life: int) -> None:
        if life == machine.life:
            self._host.start_worker(gpu)

    def _lose(self, machine: _Machine, life: int) -> None:
        if life != machine.life:
            return
        self._usage.machines_lost += 1
        for gpu in machine.gpus:
            self._host.lose_worker(gpu)
        self._leave(machine)

    def _leave(self, machine: _Machine) -> None:
        machine.life += 1
        machine.there = False
        machine.workers.clear()
        self._usage.gpus_go(self._events.now, len(machine.gpus))

    def _await_crash(self, machine: _Machine, gpu: int) -> None:
        seconds = self._fleet.next_crash(self._draw)
        self._events.after(seconds, self._crash, machine, gpu, machine.life)

    def _crash(self, machine: _Machine, gpu: int, life: int) -> None:
        if life != machine.life:
            return
        if self._host.crash_worker(gpu):
            self._usage.crashes += 1
            self._start_worker(machine, gpu, START_SECONDS)
        self._await_crash(machine, gpu)


def _state(machine: _Machine, gpu: int) -> WorkerState:
    if not machine.there:
        return WorkerState.PENDING
    if not machine.wanted:
        return WorkerState.DRAINING
    return WorkerState.RUNNING if gpu in machine.workers else WorkerState.STARTING
