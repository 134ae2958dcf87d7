"""Numbers for Prometheus; one registry per application, so that tests can have several."""

import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from farm.errors import FarmError
from farm.queue import LaneBacklog

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
MAX_LANES = 100  # with a number of their own; users choose sizes, and each size is a lane
_SOME = "; of more than 256 lanes of a checkpoint and class, those that the planner sees now"

# Otherwise each counter has a second series, its creation time.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    def __init__(self, work: Callable[[], Iterable[LaneBacklog]]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "farm_requests", "Requests", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "farm_request_seconds",
            "Time to the end of the answer",
            ["route"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.jobs = Counter("farm_jobs", "Jobs taken", ["kind"], registry=self.registry)
        self.pictures = Counter("farm_pictures", "Pictures asked for", registry=self.registry)
        self.rejected = Counter("farm_rejected", "Renders refused", registry=self.registry)
        self.uploads = Counter("farm_asset_bytes", "Bytes uploaded", registry=self.registry)
        self.registry.register(_Backlog(work))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Backlog(Collector):
    """What is queued, read when the metrics are."""

    def __init__(self, work: Callable[[], Iterable[LaneBacklog]]) -> None:
        self._work = work

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []  # otherwise the queue would be asked at registration

    def collect(self) -> Iterator[GaugeMetricFamily]:
        labels = ["lane", "priority"]
        tasks = GaugeMetricFamily("farm_queued_tasks", f"Tasks queued{_SOME}", labels=labels)
        pictures = GaugeMetricFamily(
            "farm_queued_pictures", f"Pictures queued{_SOME}", labels=labels
        )
        try:
            found = sorted(self._work(), key=lambda work: work.pictures, reverse=True)
        except FarmError:
            return  # the queue does not answer; the other numbers are still good
        others: dict[str, list[int]] = {}
        for place, work in enumerate(found):
            if place < MAX_LANES:
                tasks.add_metric([str(work.lane), str(work.priority)], work.tasks)
                pictures.add_metric([str(work.lane), str(work.priority)], work.pictures)
            else:
                both = others.setdefault(str(work.priority), [0, 0])
                both[0] += work.tasks
                both[1] += work.pictures
        for priority, (its_tasks, its_pictures) in others.items():
            tasks.add_metric(["others", priority], its_tasks)
            pictures.add_metric(["others", priority], its_pictures)
        yield tasks
        yield pictures


class Measure:
    """Counts requests by route; no label comes from a caller."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.requests.labels(method, route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)
