"""A simulated farm: what happens when, and what each event does."""

import random
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import redis

from farm.errors import FarmError, LeaseLost, Unavailable
from farm.job import Priority
from farm.scheduler.growth import SHRINK_SECONDS
from farm.scheduler.placer import Placer
from farm.scheduler.scheduler import WAKE_MS, Scheduler
from farm.simulation.cluster import GROUP, SimulatedCluster
from farm.simulation.events import Events
from farm.simulation.fleet import Fleet
from farm.simulation.report import Report, Usage
from farm.simulation.service import Service
from farm.simulation.virtual_queue import VirtualQueue
from farm.simulation.worker import HeldTask, SimulatedWorker, receipt
from farm.simulation.workload import DataSet, Workload, submit, submit_urgent

LEASE_MS = 10_000
TURN_SECONDS = 0.05  # within which workers that have something to tell do it together
MOST_SECONDS = 7 * 86_400.0  # of the virtual clock


class Plan(NamedTuple):
    """What is simulated."""

    fleet: Fleet
    services: Mapping[str, Service]  # by size
    work: Workload
    rows: int = 256  # that an engine holds
    pass_seconds: float = 0.05  # of one pass of the scheduler
    target_seconds: float = 60.0  # that queued work takes at most, for a farm that grows
    shrink_seconds: float = SHRINK_SECONDS
    seed: int = 1


class Simulation:
    """One run, on a server that nothing else uses."""

    def __init__(self, client: "redis.Redis", plan: Plan) -> None:
        self.plan = plan
        self.usage = Usage()
        self._events = Events()
        self._draw = random.Random(plan.seed)
        self._queue = VirtualQueue(client, lambda: self._events.now)
        self._cluster = SimulatedCluster(plan.fleet, self._events, self, self.usage, self._draw)
        placer = Placer(
            self._queue,
            self._cluster,
            [self._cluster.group],
            target_seconds=plan.target_seconds,
            shrink_seconds=plan.shrink_seconds,
            clock=lambda: self._events.now,
        )
        self._scheduler = Scheduler(self._queue, lease_ms=LEASE_MS, placement=placer)
        self._workers: dict[int, SimulatedWorker] = {}  # by GPU
        self._by_session: dict[str, int] = {}
        self._wakes: dict[int, float] = {}  # by GPU: the only one of its wakes that counts
        self._telling: dict[int, SimulatedWorker] = {}  # by GPU: they have something to tell
        self._arrived: dict[str, float] = {}  # urgent jobs, and when they came
        self._passing = False  # the scheduler is in a pass
        self._news = False  # that the scheduler finds when it looks again
        self._to_come = 0  # jobs of data sets
        self._left: set[str] = set()  # those that have come and have not ended
        self._tasks = 0

    def run(self) -> Report:
        """Go on until the last job of a data set has ended."""
        plan, events = self.plan, self._events
        for at, data_set in plan.work.arrivals(self._draw):
            self._to_come += 1
            events.after(at, self._data_set_comes, data_set)
        self._cluster.start()
        self._await_person()
        events.after(0.0, self._pass)
        started, before = time.perf_counter(), self._server_seconds()
        while self._to_come or self._left:
            if events.now > MOST_SECONDS:
                raise Unavailable(f"{len(self._left)} jobs are left after {events.now:,.0f} s")
            events.go_on()
        return Report(
            gpus=plan.fleet.gpus,
            seconds=events.now,
            backlog_until=self._queue.backlog_until,
            tasks=self._tasks,
            submitted=sum(plan.work.lanes.values()),
            usage=self.usage,
            leases=self._queue.tallies().leases,
            calls=dict(self._queue.calls),
            server_seconds=self._server_seconds() - before,
            real_seconds=time.perf_counter() - started,
        )

    def _server_seconds(self) -> float:
        cpu: Any = self._queue.client.info("cpu")
        return float(cpu["used_cpu_sys"] + cpu["used_cpu_user"])

    # What the cluster does to workers.

    def start_worker(self, gpu: int) -> None:
        plan = self.plan
        worker = SimulatedWorker(
            self._queue,
            f"{GROUP}-{gpu}",
            f"{self._draw.getrandbits(128):032x}",
            plan.services,
            rows=plan.rows,
            steps=plan.work.steps,
            lease_ms=LEASE_MS,
            now=self._events.now,
            busy=self.usage.busy,
        )
        self._workers[gpu] = worker
        self._by_session[worker.session] = gpu
        self._plan_wake(gpu)

    def lose_worker(self, gpu: int) -> None:
        worker = self._workers.pop(gpu, None)
        if worker is None:
            return
        worker.advance(self._events.now)
        del self._by_session[worker.session]
        for task in worker.held.values():
            self.usage.rendered_in_vain += task.lease.pictures - task.to_render

    def crash_worker(self, gpu: int) -> bool:
        if gpu not in self._workers:
            return False
        self._workers[gpu].end("crash")
        self.lose_worker(gpu)
        return True

    def drain_worker(self, gpu: int) -> None:
        if gpu in self._workers:
            self._workers[gpu].drain(self._events.now)
            self._plan_wake(gpu)

    # The scheduler and the workers.

    def _pass(self) -> None:
        """One pass of the scheduler; its grants are there when it has taken its time."""
        self._passing, self._news = True, False
        started = time.perf_counter()
        granted = self._scheduler.step()
        self.usage.passes.append(time.perf_counter() - started)
        self._events.after(self.plan.pass_seconds, self._passed, granted)

    def _passed(self, granted: int) -> None:
        self._passing = False
        self._deliver()
        if granted or self._news:
            self._pass()
        else:
            self._events.after(WAKE_MS / 1000, self._slept, len(self.usage.passes))

    def _slept(self, passes: int) -> None:
        """The longest sleep, unless something has woken the scheduler meanwhile."""
        if passes == len(self.usage.passes):
            self._wake_scheduler()

    def _wake_scheduler(self) -> None:
        """An event of the queue starts a pass, or is found after the one that runs."""
        self._news = True
        if not self._passing:
            self._pass()

    def _deliver(self) -> None:
        sessions, self._queue.granted = sorted(self._queue.granted), set()
        # The workers of others have died, and their leases will run out.
        sessions = [session for session in sessions if session in self._by_session]
        for session, leases in zip(sessions, self._queue.delivered(sessions), strict=True):
            gpu = self._by_session[session]
            self._workers[gpu].take(leases, self._events.now)
            self._plan_wake(gpu)

    def _plan_wake(self, gpu: int) -> None:
        now = self._events.now
        at = self._wakes[gpu] = max(self._workers[gpu].next_event(), now)
        self._events.after(at - now, self._wake, gpu, at)

    def _wake(self, gpu: int, at: float) -> None:
        worker = self._workers.get(gpu)
        if worker is None or self._wakes[gpu] != at:
            return
        if not worker.act(self._events.now):
            self._end_or_go_on(gpu)
            return
        if not self._telling:
            self._events.after(TURN_SECONDS, self._tell)
        self._telling[gpu] = worker

    def _tell(self) -> None:
        """What several workers have to tell goes to the queue in one round trip."""
        telling, self._telling = self._telling, {}
        workers = {gpu: one for gpu, one in telling.items() if self._workers.get(gpu) is one}
        for worker in workers.values():
            worker.advance(self._events.now)
        self._report(workers)
        self._heartbeat(workers)
        self._deliver()
        for gpu, worker in workers.items():
            if self._workers.get(gpu) is worker:
                self._end_or_go_on(gpu)

    def _report(self, workers: Mapping[int, SimulatedWorker]) -> None:
        ended = {gpu: one.published for gpu, one in workers.items() if one.published}
        done = [
            (workers[gpu].session, [(task.lease, receipt(task.lease)) for task in tasks])
            for gpu, tasks in ended.items()
        ]
        answers = self._queue.completions(done)
        for (gpu, tasks), outcomes in zip(ended.items(), answers, strict=True):
            lost = workers[gpu].reported(tasks, outcomes)
            self.usage.rendered_in_vain += sum(task.lease.pictures for task in lost)
            for task in tasks:
                if task not in lost:
                    self._note_done(task)
        if ended:
            self._wake_scheduler()

    def _heartbeat(self, workers: Mapping[int, SimulatedWorker]) -> None:
        now = self._events.now
        told = {gpu: one.heartbeat(now) for gpu, one in workers.items()}
        due = {gpu: arguments for gpu, arguments in told.items() if arguments is not None}
        answers = self._queue.heartbeats(list(due.values()))
        for gpu, answer in zip(due, answers, strict=True):
            if isinstance(answer, LeaseLost):
                self.lose_worker(gpu)
                self.start_worker(gpu)
            elif isinstance(answer, FarmError):
                raise answer
            else:
                workers[gpu].heard(answer, now)

    def _end_or_go_on(self, gpu: int) -> None:
        worker = self._workers[gpu]
        if worker.drained:
            worker.end("drain")
            self.lose_worker(gpu)
            self._cluster.worker_ended(gpu)
        else:
            self._plan_wake(gpu)

    def _note_done(self, task: HeldTask) -> None:
        lease, now = task.lease, self._events.now
        if lease.finalise:
            self._left.discard(lease.job)
        elif lease.priority is not Priority.URGENT:
            self.usage.rendered += lease.pictures
        elif (came := self._arrived.pop(lease.job, None)) is not None:
            self.usage.urgent_started.append((task.started_at or now) - came)
            self.usage.urgent_stored.append(now - came)

    # What users do.

    def _data_set_comes(self, data_set: DataSet) -> None:
        self._left.add(submit(self._queue, data_set))
        self._to_come -= 1
        self._tasks += len(data_set.tasks)
        self._wake_scheduler()

    def _await_person(self) -> None:
        if rate := self.plan.work.urgent_per_second:
            self._events.after(self._draw.expovariate(rate), self._person_comes)

    def _person_comes(self) -> None:
        job = submit_urgent(self._queue, self.plan.work, self._draw)
        self._arrived[job] = self._events.now
        self._wake_scheduler()
        self._await_person()
