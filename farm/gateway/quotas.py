"""How much of the farm one tenant may use; a refusal names the limit."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from redis.exceptions import RedisError

from farm.errors import OverQuota
from farm.ingest.ndjson import Entry
from farm.job import TERMINAL_JOBS
from farm.queue import MAX_ROWS, JobStatus, Queue
from farm.queue.connection import explain
from farm.settings import GatewaySettings
from farm.spec import PARAMETERS

BURST_SECONDS = 10.0  # worth of requests that may come at once
COUNT_SECONDS = 5.0  # that a count of pictures is used for; what was accepted since is added
COUNTED_JOBS = 5 * MAX_ROWS  # the newest of a tenant; older ones are nearly always done
MAX_TENANTS = 10_000  # remembered

_MOST_IMAGES = int(PARAMETERS["num_images"].most or 1)


class QuotaLimits(NamedTuple):
    requests_per_second: int
    pictures: int
    asset_bytes: int

    @classmethod
    def of(cls, settings: GatewaySettings) -> "QuotaLimits":
        return cls(settings.quota_requests, settings.quota_pictures, settings.quota_bytes)


class _Use:
    """What is remembered of one tenant."""

    def __init__(self, now: float, burst: float) -> None:
        self.requests = burst  # that it may still make
        self.since = now
        self.pictures = 0
        self.counted: float | None = None


class Quotas:
    """Of one gateway; requests are counted here, pictures and bytes in the queue's server.

    Several gateways may together let through what came to them in the last seconds.
    """

    def __init__(
        self,
        queue: Queue,
        limits: QuotaLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = queue
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._uses: dict[str, _Use] = {}

    def take_request(self, tenant: str) -> None:
        rate = self._limits.requests_per_second
        burst = rate * BURST_SECONDS
        with self._lock:
            now = self._clock()
            use = self._use(tenant, now)
            use.requests = min(use.requests + (now - use.since) * rate, burst)
            use.since = now
            if use.requests < 1:
                raise OverQuota(f"more than {rate:,} requests a second", hint="try again later")
            use.requests -= 1

    def take_pictures(self, tenant: str, entries: Sequence[Entry]) -> None:
        """Before a submission is taken in."""
        asked = sum(_pictures(entry.data) for entry in entries)
        with self._lock:
            now = self._clock()
            use = self._use(tenant, now)
            fresh = use.counted is not None and now - use.counted < COUNT_SECONDS
        counted = use.pictures if fresh else self._count(tenant)
        with self._lock:
            if not fresh:
                use.pictures, use.counted = counted, now
            most = self._limits.pictures
            if use.pictures + asked > most:
                raise OverQuota(
                    f"{use.pictures:,} pictures are still to be made, and {asked:,} more would be "
                    f"over {most:,}",
                    field="renders",
                    hint="submit them when some are done",
                )
            use.pictures += asked

    def take_bytes(self, tenant: str, size: int) -> None:
        """Before a file is kept; ``give_bytes`` takes it back where it was there already."""
        most = self._limits.asset_bytes
        try:
            used = int(self._queue.client.hincrby(self._key, tenant, size))
        except RedisError as error:
            raise explain(error) from error
        if used > most:
            self.give_bytes(tenant, size)
            raise OverQuota(
                f"{used - size:,} bytes of files are stored, and {size:,} more "
                f"would be over {most:,}",
                field="asset",
            )

    def give_bytes(self, tenant: str, size: int) -> None:
        try:
            self._queue.client.hincrby(self._key, tenant, -size)
        except RedisError as error:
            raise explain(error) from error

    @property
    def _key(self) -> str:
        return f"{{{self._queue.farm}}}:asset-bytes"

    def _use(self, tenant: str, now: float) -> _Use:
        use = self._uses.get(tenant)
        if use is None:
            if len(self._uses) >= MAX_TENANTS:
                self._uses.pop(next(iter(self._uses)))
            burst = self._limits.requests_per_second * BURST_SECONDS
            use = self._uses[tenant] = _Use(now, burst)
        return use

    def _count(self, tenant: str) -> int:
        left, before = 0, None
        for _ in range(COUNTED_JOBS // MAX_ROWS):
            page = self._queue.jobs(tenant, MAX_ROWS, before)
            left += sum(_left(status) for status in page if status.state not in TERMINAL_JOBS)
            if len(page) < MAX_ROWS:
                break
            before = page[-1].id
        return left


def _left(status: JobStatus) -> int:
    return max(status.images.total - status.images.done - status.images.failed, 0)


def _pictures(data: Any) -> int:
    """What a render asks for before it is resolved; a wrong number is refused later."""
    if not isinstance(data, dict):
        return 0
    asked = data.get("num_images", data.get("num_images_per_prompt", 1))
    return min(asked, _MOST_IMAGES) if isinstance(asked, int) and asked > 0 else 1
