"""What a worker has measured since its start, for its heartbeats."""

import bisect
import collections
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    disable_created_metrics,
)
from prometheus_client.core import HistogramMetricFamily

from farm import measures
from farm.measures import MAX_LANES, MEASURES, OTHERS, SECONDS, Measure
from farm.spec import Lane
from farm_workers.render_engine import RenderEngine, Usage

MAX_TENANTS = 32

# Otherwise each counter has a second series, its creation time.
disable_created_metrics()  # type: ignore[no-untyped-call]


class WorkerMetrics:
    """Thread-safe.

    Args:
        engines: whose slots and memory are told.
        pending_bytes: gives what waits to be stored.
    """

    def __init__(
        self,
        engines: Sequence[RenderEngine] = (),
        pending_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        self._engines = engines
        self._pending_bytes = pending_bytes
        self._registry = CollectorRegistry()
        self._metrics: dict[str, Any] = {
            measure.name: _metric(measure, self._registry) for measure in MEASURES
        }
        self._children: dict[tuple[str, tuple[str, ...]], Any] = {}
        self._lanes = _Known(MAX_LANES)
        self._tenants = _Known(MAX_TENANTS)
        self.latest: dict[str, list[list[Any]]] = {}  # snapshot
        self._told = [Usage() for _ in engines]

    def stepped(
        self, seconds: float, lanes: Mapping[Lane, int], tenants: Mapping[str, int]
    ) -> None:
        """An engine has worked for rows of these lanes and tenants, so many of each."""
        rows = sum(lanes.values())
        for lane, its_rows in lanes.items():
            self._add(measures.ENGINE_SECONDS, seconds * its_rows / rows, self._lanes.name(lane))
        for tenant, its_rows in tenants.items():
            share = seconds * its_rows / rows
            self._add(measures.TENANT_SECONDS, share, self._tenants.name(tenant))

    def rows_ended(self, lane: Lane, steps: int, seconds: Sequence[float], failed: int = 0) -> None:
        """Rows have left an engine.

        Args:
            steps: of all of them.
            seconds: since each entered it.
            failed: how many of them failed.
        """
        name = self._lanes.name(lane)
        for outcome, rows in (("done", len(seconds) - failed), ("failed", failed)):
            if rows:
                self._add(measures.PICTURES, rows, name, outcome)
        self._add(measures.ROW_STEPS, steps, name)
        self._metrics[measures.RENDER_SECONDS.name].observe(*seconds)

    def stored(self, encode_seconds: float, upload_seconds: float) -> None:
        """A picture has been stored."""
        self._metrics[measures.ENCODE_SECONDS.name].observe(encode_seconds)
        self._metrics[measures.UPLOAD_SECONDS.name].observe(upload_seconds)

    def looked_up(self, cache: str, hit: bool) -> None:
        """An input was wanted; ``hit`` if it was in memory."""
        self._add(measures.CACHE, 1, cache, "hit" if hit else "miss")

    def snapshot(self) -> dict[str, list[list[Any]]]:
        """By the name of a measure: the ending of each number's name, its labels' values, itself.

        JSON takes it as it is. One thread may call this.
        """
        self._read_engines()
        self._metrics[measures.PENDING_BYTES.name].set(self._pending_bytes())
        self.latest = {
            family.name: [
                [sample.name.removeprefix(family.name), list(sample.labels.values()), sample.value]
                for sample in family.samples
            ]
            for family in self._registry.collect()
            if family.samples
        }
        return self.latest

    def _read_engines(self) -> None:
        for number, engine in enumerate(self._engines):
            now, before = engine.usage, self._told[number]
            self._told[number] = now
            self._add(measures.STEPS, now.steps - before.steps)
            self._add(measures.SLOTS_BUSY, now.busy - before.busy)
            self._add(measures.SLOTS_COMPUTED, now.computed - before.computed)
            for kind, size in now.memory.items():
                self._metrics[measures.GPU_MEMORY.name].labels(kind).set(size)

    def _add(self, measure: Measure, by: float, *labels: str) -> None:
        self._child(measure.name, labels).inc(by)

    def _child(self, name: str, labels: tuple[str, ...]) -> Any:
        """The number of a metric with these labels; looking it up costs more than adding to it."""
        key = name, labels
        if key not in self._children:
            metric = self._metrics[name]
            self._children[key] = metric.labels(*labels) if labels else metric
        return self._children[key]


class _Known:
    """The first so many texts keep their names; all later ones share one."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._names: dict[object, str] = {}
        self._lock = threading.Lock()

    def name(self, of: object) -> str:
        with self._lock:
            if of not in self._names:
                if len(self._names) == self._limit:
                    return OTHERS
                self._names[of] = str(of)
            return self._names[of]


class _Histogram:
    """What ``prometheus_client.Histogram`` is, for many values at a time."""

    def __init__(self, measure: Measure, registry: CollectorRegistry) -> None:
        self._measure = measure
        self._counts = [0] * (len(SECONDS) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()
        registry.register(self)

    def observe(self, *values: float) -> None:
        with self._lock:
            self._sum += sum(values)
            for value, count in collections.Counter(values).items():  # rows that came together
                self._counts[bisect.bisect_left(SECONDS, value)] += count

    def collect(self) -> Iterator[HistogramMetricFamily]:
        with self._lock:
            counts, total = itertools.accumulate(self._counts), self._sum
        bounds = [*map(str, SECONDS), "+Inf"]
        yield HistogramMetricFamily(
            self._measure.name,
            self._measure.help,
            buckets=list(zip(bounds, counts, strict=True)),
            sum_value=total,
        )


def _metric(measure: Measure, registry: CollectorRegistry) -> Counter | Gauge | _Histogram:
    if measure.kind == "histogram":
        return _Histogram(measure, registry)
    kind = Counter if measure.kind == "counter" else Gauge
    return kind(measure.name, measure.help, measure.labels, registry=registry)
