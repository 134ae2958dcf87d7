"""The loop of a simulation: events in the order of their time, and what each of them does."""

import collections
import heapq
import itertools
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import redis

from farm.errors import LeaseLost, Unavailable
from farm.job import Priority
from farm.scheduler.scheduler import WAKE_MS, Scheduler
from farm.simulation.fleet import MACHINE_SECONDS, START_SECONDS, Fleet
from farm.simulation.report import Report, Usage
from farm.simulation.service import Service
from farm.simulation.virtual_queue import VirtualQueue
from farm.simulation.worker import SimulatedWorker
from farm.simulation.workload import Workload, submit_datasets, submit_urgent

LEASE_MS = 10_000
MOST_SECONDS = 7 * 86_400.0  # of the virtual clock


class Plan(NamedTuple):
    """What is simulated."""

    fleet: Fleet
    services: Mapping[str, Service]  # by size
    work: Workload
    rows: int = 256  # that an engine holds
    pass_seconds: float = 0.05  # of one pass of the scheduler
    seed: int = 1


class Simulation:
    """One run, on a server that nothing else uses."""

    def __init__(self, client: "redis.Redis", plan: Plan) -> None:
        self.plan = plan
        self.now = 0.0
        self.usage = Usage()
        self._queue = VirtualQueue(client, lambda: self.now)
        self._scheduler = Scheduler(self._queue, lease_ms=LEASE_MS)
        self._draw = random.Random(plan.seed)
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self._workers: dict[int, SimulatedWorker] = {}  # by GPU
        self._by_session: dict[str, int] = {}
        self._wakes: dict[int, float] = {}  # by GPU: the only one of its wakes that counts
        self._machines: collections.Counter[int] = collections.Counter()  # so many it had, by GPU
        self._arrived: dict[str, float] = {}  # urgent jobs, and when they came
        self._passing = False  # the scheduler is in a pass
        self._left = 0  # tasks of data sets that are not done

    def run(self) -> Report:
        """Submit the data sets, and go on until they are done."""
        plan = self.plan
        self._left = tasks = submit_datasets(self._queue, plan.work)
        for number, machine in enumerate(plan.fleet.machines):
            self._start_machine(number, machine, first=True)
        self._await_person()
        self._after(0.0, self._pass)
        self._queue.calls.clear()
        started, before = time.perf_counter(), self._server_seconds()
        while self._left:
            if not self._events or self.now > MOST_SECONDS:
                raise Unavailable(f"{self._left} tasks are left after {self.now:,.0f} s")
            self.now, _, act, arguments = heapq.heappop(self._events)
            act(*arguments)
        return Report(
            gpus=plan.fleet.gpus,
            seconds=self.now,
            backlog_until=self._queue.backlog_until,
            tasks=tasks,
            usage=self.usage,
            leases=self._queue.leased,
            calls=dict(self._queue.calls),
            server_seconds=self._server_seconds() - before,
            real_seconds=time.perf_counter() - started,
        )

    def _server_seconds(self) -> float:
        cpu: Any = self._queue.client.info("cpu")
        return float(cpu["used_cpu_sys"] + cpu["used_cpu_user"])

    def _after(self, seconds: float, act: Callable[..., None], *arguments: Any) -> None:
        if seconds != float("inf"):
            event = (self.now + seconds, next(self._numbers), act, arguments)
            heapq.heappush(self._events, event)

    # Machines.

    def _start_machine(self, number: int, gpus: range, *, first: bool = False) -> None:
        for gpu in gpus:
            self._machines[gpu] += 1
            # Workers that all started at once would send their heartbeats at once for ever.
            seconds = self._draw.random() if first else START_SECONDS
            self._after(seconds, self._start_worker, gpu, self._machines[gpu])
            self._await_crash(gpu)
        self.usage.gpus_come(self.now, len(gpus))
        self._after(self.plan.fleet.next_loss(self._draw), self._lose_machine, number, gpus)

    def _lose_machine(self, number: int, gpus: range) -> None:
        self.usage.machines_lost += 1
        self.usage.gpus_go(self.now, len(gpus))
        for gpu in gpus:
            self._machines[gpu] += 1  # what was ahead of this one does not happen
            self._forget_worker(gpu)
        self._after(MACHINE_SECONDS, self._start_machine, number, gpus)

    def _start_worker(self, gpu: int, machine: int) -> None:
        if machine != self._machines[gpu]:
            return
        plan = self.plan
        worker = SimulatedWorker(
            self._queue,
            f"gpu-{gpu}",
            f"{self._draw.getrandbits(128):032x}",
            plan.services,
            rows=plan.rows,
            steps=plan.work.steps,
            lease_ms=LEASE_MS,
            now=self.now,
            busy=self.usage.busy,
        )
        self._workers[gpu] = worker
        self._by_session[worker.session] = gpu
        self._plan_wake(gpu)

    def _await_crash(self, gpu: int) -> None:
        seconds = self.plan.fleet.next_crash(self._draw)
        self._after(seconds, self._crash, gpu, self._machines[gpu])

    def _crash(self, gpu: int, machine: int) -> None:
        if machine != self._machines[gpu]:
            return
        if gpu in self._workers:
            self.usage.crashes += 1
            self._workers[gpu].end()
            self._forget_worker(gpu)
            self._after(START_SECONDS, self._start_worker, gpu, machine)
        self._await_crash(gpu)

    def _forget_worker(self, gpu: int) -> None:
        worker = self._workers.pop(gpu, None)
        if worker is None:
            return
        worker.advance(self.now)
        del self._by_session[worker.session]
        for task in worker.held.values():
            self.usage.rendered_in_vain += task.lease.pictures - task.to_render

    # The scheduler and the workers.

    def _pass(self) -> None:
        """One pass of the scheduler; its grants are there when it has taken its time."""
        self._passing = True
        started = time.perf_counter()
        granted = self._scheduler.step()
        self.usage.passes.append(time.perf_counter() - started)
        self._after(self.plan.pass_seconds, self._passed, granted)

    def _passed(self, granted: int) -> None:
        self._passing = False
        self._deliver()
        if granted:
            self._pass()
        else:
            self._after(WAKE_MS / 1000, self._wake_scheduler, len(self.usage.passes))

    def _wake_scheduler(self, passes: int | None = None) -> None:
        """An event of the queue, or the longest sleep after so many passes, starts the next."""
        if not self._passing and passes in (None, len(self.usage.passes)):
            self._pass()

    def _deliver(self) -> None:
        granted, self._queue.granted = self._queue.granted, set()
        for session in granted:
            gpu = self._by_session.get(session)
            if gpu is not None:  # else its worker has died, and the lease will run out
                self._workers[gpu].take(self._queue.inbox(session, 0.01), self.now)
                self._plan_wake(gpu)

    def _plan_wake(self, gpu: int) -> None:
        at = max(self._workers[gpu].next_event(), self.now)
        self._wakes[gpu] = at
        self._after(at - self.now, self._wake, gpu, at)

    def _wake(self, gpu: int, at: float) -> None:
        worker = self._workers.get(gpu)
        if worker is None or self._wakes[gpu] != at:
            return
        try:
            worker.act(self.now)
        except LeaseLost:
            self._forget_worker(gpu)
            self._start_worker(gpu, self._machines[gpu])
            return
        if worker.done:
            self._note_done(worker)
            self._wake_scheduler()
        self._deliver()
        self._plan_wake(gpu)

    def _note_done(self, worker: SimulatedWorker) -> None:
        done, worker.done = worker.done, []
        for task, at in done:
            lease = task.lease
            if lease.finalise:
                continue
            if lease.priority is not Priority.URGENT:
                self._left -= 1
                self.usage.rendered += lease.pictures
            elif came := self._arrived.pop(lease.job, None):
                self.usage.urgent_started.append((task.started_at or at) - came)
                self.usage.urgent_stored.append(at - came)

    def _await_person(self) -> None:
        if rate := self.plan.work.urgent_per_second:
            self._after(self._draw.expovariate(rate), self._person_comes)

    def _person_comes(self) -> None:
        job = submit_urgent(self._queue, self.plan.work, self._draw)
        self._arrived[job] = self.now
        self._wake_scheduler()
        self._await_person()
