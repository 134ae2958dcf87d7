"""Numbers for Prometheus; one registry per application, so that tests can have several."""

import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import Metric
from prometheus_client.samples import Sample
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from farm import logs
from farm.gateway.farm_metrics import FarmMetrics, Figures
from farm.measures import OTHERS
from farm.queue import Queue, Session

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

# Otherwise each counter has a second series, its creation time.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """What this gateway counts, and the farm's figures as the queue has them."""

    def __init__(self, queue: Queue, sessions: Callable[[], Sequence[Session]]) -> None:
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
        self._farm = FarmMetrics(queue, sessions)
        named = CollectorRegistry()
        named.register(self._farm)
        self._farms = {True: named, False: _WithoutNames(named)}  # by whether tenants are named
        self._told: dict[bool, tuple[Figures | None, bytes]] = {}
        self._telling = threading.Lock()

    def text(self, *, tenants: bool = True) -> bytes:
        """As Prometheus reads it; without the tenants' names, they are counted together."""
        return generate_latest(self.registry) + self._farm_text(tenants)

    def _farm_text(self, tenants: bool) -> bytes:
        """Made once of the same figures: anyone may ask, and of many workers it is long."""
        with self._telling:
            figures = self._farm.read()
            known = self._told.get(tenants)
            if known is None or known[0] is not figures:
                known = self._told[tenants] = figures, generate_latest(self._farms[tenants])
            return known[1]


class _WithoutNames(CollectorRegistry):
    """The same figures with all tenants as one, so that sums stay what they are."""

    def __init__(self, whole: CollectorRegistry) -> None:
        super().__init__()
        self._whole = whole

    def collect(self) -> Iterator[Metric]:
        for family in self._whole.collect():
            sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
            for name, labels, value, *_ in family.samples:
                shown = {**labels, "tenant": OTHERS} if "tenant" in labels else labels
                sums[name, tuple(shown.items())] += value
            family.samples = [
                Sample(name, dict(labels), value) for (name, labels), value in sums.items()
            ]
            yield family


class MeasureRequests:
    """Counts requests by route, and gives each an id; no label comes from a caller."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500
        number = secrets.token_hex(8)

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = number
            await send(message)

        try:
            with logs.request(number):
                await self._app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.requests.labels(method, route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)
