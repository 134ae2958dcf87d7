"""The whole farm's figures for Prometheus: queue, tenants and workers, in one place.

Workers tell what they have measured in their heartbeats, the scripts of the queue count what
happens to tasks, and here both are read when Prometheus asks. So no worker needs a port that can
be reached. Every gateway shows the same figures.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from farm.errors import FarmError
from farm.measures import MEASURES, OTHERS, Measure, read
from farm.queue import LaneBacklog, Queue, Session, Tallies, placed_workers
from farm.queue.placed_workers import PlacedWorker, Reason, WorkerState
from farm.queue.tallies import ENDED, FAILED, RETURNED, WAIT_BUCKETS

FRESH_SECONDS = 1.0  # at least: the queue is not asked more often, however many ask here
FRESH_FOR_EACH = 0.005  # worker; what a thousand of them say takes a second to read and to write
MAX_LANES = 100  # with a number of their own; users choose sizes, and each size is a lane
MAX_TENANTS = 100  # likewise
_SOME = "; of more than 256 lanes of a checkpoint and class, those that the planner sees now"


class Figures(NamedTuple):
    backlog: Sequence[LaneBacklog]
    tallies: Tallies
    sessions: Sequence[Session]
    placed: Sequence[PlacedWorker]


class FarmMetrics(Collector):
    """Reads the queue when the metrics are read."""

    def __init__(
        self,
        queue: Queue,
        sessions: Callable[[], Sequence[Session]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = queue
        self._sessions = sessions
        self._clock = clock
        self._lock = threading.Lock()
        self._fresh_until = float("-inf")
        self._figures: Figures | None = None

    def describe(self) -> Iterable[Metric]:
        return []  # otherwise the queue would be asked at registration

    def collect(self) -> Iterator[Metric]:
        figures = self.read()
        yield _gauge("farm_queue_up", "Whether the queue answers", figures is not None)
        if figures is not None:
            yield from _queued(figures.backlog)
            yield from _tallied(figures.tallies)
            yield from _workers(_living(figures.sessions))
            yield _placed(figures.placed)

    def read(self) -> Figures | None:
        """None if the queue does not answer; the gateway's own numbers are still good."""
        with self._lock:
            if self._clock() >= self._fresh_until:
                workers = 0
                try:
                    self._figures = Figures(
                        self._queue.backlog(),
                        self._queue.tallies(),
                        self._sessions(),
                        placed_workers.read(self._queue),
                    )
                    workers = len(self._figures.sessions)
                except FarmError:
                    self._figures = None
                # From now: those who waited take what was read.
                fresh = max(FRESH_SECONDS, FRESH_FOR_EACH * workers)
                self._fresh_until = self._clock() + fresh
            return self._figures


def _queued(backlog: Iterable[LaneBacklog]) -> Iterator[Metric]:
    labels = ["lane", "priority"]
    tasks = GaugeMetricFamily("farm_queued_tasks", f"Tasks queued{_SOME}", labels=labels)
    pictures = GaugeMetricFamily("farm_queued_pictures", f"Pictures queued{_SOME}", labels=labels)
    others: dict[str, list[int]] = {}
    for place, work in enumerate(sorted(backlog, key=lambda work: work.pictures, reverse=True)):
        if place < MAX_LANES:
            tasks.add_metric([str(work.lane), str(work.priority)], work.tasks)
            pictures.add_metric([str(work.lane), str(work.priority)], work.pictures)
        else:
            both = others.setdefault(str(work.priority), [0, 0])
            both[0] += work.tasks
            both[1] += work.pictures
    for priority, (its_tasks, its_pictures) in others.items():
        tasks.add_metric([OTHERS, priority], its_tasks)
        pictures.add_metric([OTHERS, priority], its_pictures)
    yield tasks
    yield pictures


def _tallied(found: Tallies) -> Iterator[Metric]:
    yield _labelled(
        GaugeMetricFamily(
            "farm_queue_oldest_seconds", "Since the oldest ready job came in", labels=["priority"]
        ),
        {str(priority): age for priority, age in found.oldest_seconds.items()},
    )
    waits = HistogramMetricFamily(
        "farm_queue_wait_seconds", "From a job's submission to its start", labels=["priority"]
    )
    for priority, waited in found.waits.items():
        buckets, jobs = [], 0
        for bound, count in zip((*map(str, WAIT_BUCKETS), "+Inf"), waited.jobs, strict=True):
            jobs += count
            buckets.append((bound, float(jobs)))
        waits.add_metric([str(priority)], buckets, waited.seconds)
    yield waits
    yield _counter("farm_leases", "Tasks granted to workers", found.leases)
    yield _counter("farm_leases_lost", "Tasks that a worker held when it died", found.leases_lost)
    for name, about, counts, reasons in (
        ("farm_leases_returned", "Leases that ended without a result", found.returned, RETURNED),
        ("farm_failures", "Pictures that will not be made", found.failed, FAILED),
        ("farm_sessions_ended", "Workers that ended", found.sessions, ENDED),
    ):
        family = CounterMetricFamily(name, about, labels=["reason"])
        yield _labelled(family, {reason: counts.get(reason, 0) for reason in reasons})
    yield from _tenants(found)


def _tenants(found: Tallies) -> Iterator[Metric]:
    pictures = CounterMetricFamily("farm_tenant_pictures", "Pictures made", labels=["tenant"])
    row_steps = CounterMetricFamily(
        "farm_tenant_row_steps", "Row-steps of pictures made", labels=["tenant"]
    )
    most = sorted(found.tenants.items(), key=lambda one: one[1].row_steps, reverse=True)
    for name, tenant in most[:MAX_TENANTS]:
        pictures.add_metric([name], tenant.pictures)
        row_steps.add_metric([name], tenant.row_steps)
    if rest := most[MAX_TENANTS:]:
        pictures.add_metric([OTHERS], sum(tenant.pictures for _, tenant in rest))
        row_steps.add_metric([OTHERS], sum(tenant.row_steps for _, tenant in rest))
    yield pictures
    yield row_steps


def _living(sessions: Iterable[Session]) -> list[Session]:
    """The newest session of each worker: one that was lost stays until its lease ends."""
    newest: dict[str, Session] = {}
    for session in sorted(sessions, key=lambda session: session.seen_ms, reverse=True):
        newest[session.worker] = session
    return sorted(newest.values(), key=lambda session: session.worker)


def _workers(sessions: Sequence[Session]) -> Iterator[Metric]:
    yield _gauge("farm_workers", "Workers that are connected", len(sessions))
    info = GaugeMetricFamily(
        "farm_worker_info", "What a worker is; always 1", labels=["worker", "host", "version"]
    )
    for session in sessions:
        facts = [str(session.info.get(name, "")) for name in ("host", "version")]
        info.add_metric([session.worker, *facts], 1)
    yield info
    tasks = {one.worker: one.held for one in sessions}
    yield _by_worker("farm_worker_tasks", "Tasks that a worker holds", tasks)
    room = {one.worker: one.room for one in sessions}
    yield _by_worker("farm_worker_room", "Pictures that a worker could take", room)
    silent = {one.worker: one.seen_ms / 1000 for one in sessions}
    yield _by_worker("farm_worker_silent_seconds", "Since a worker's last heartbeat", silent)
    for measure in MEASURES:
        yield _measured(measure, sessions)


def _placed(workers: Iterable[PlacedWorker]) -> Metric:
    """States without workers are told too, so that their lines end at zero; those that are gone
    are counted where sessions end."""
    family = GaugeMetricFamily(
        "farm_placed_workers",
        "Workers that a scheduler runs on a cluster, or wants to",
        labels=["state", "reason"],
    )
    told = [state for state in WorkerState if state is not WorkerState.GONE]
    counts: dict[tuple[WorkerState, Reason], int] = dict.fromkeys(
        ((state, Reason.NONE) for state in told), 0
    )
    for worker in workers:
        label = worker.state, worker.reason
        counts[label] = counts.get(label, 0) + 1
    for labels, count in counts.items():
        family.add_metric(labels, count)
    return family


def _measured(measure: Measure, sessions: Sequence[Session]) -> Metric:
    family = Metric(measure.name, measure.help, measure.kind)
    for session in sessions:
        for ending, labels, value in read(session.stats, measure):
            named = {"worker": session.worker, **labels}
            family.add_sample(measure.name + ending, named, value)
    return family


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value=value)


def _counter(name: str, about: str, value: float) -> Metric:
    return CounterMetricFamily(name, about, value=value)


def _by_worker(name: str, about: str, values: Mapping[str, float]) -> Metric:
    return _labelled(GaugeMetricFamily(name, about, labels=["worker"]), values)


def _labelled(
    family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[str, float]
) -> Metric:
    for label, value in values.items():
        family.add_metric([label], value)
    return family
