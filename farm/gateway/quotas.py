"""How much of the farm one tenant may use; a refusal names the limit."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from typing import Any, NamedTuple

from farm.errors import OverQuota, StoreError
from farm.ingest.ndjson import Entries
from farm.job import TERMINAL_JOBS, JobState
from farm.queue import MAX_ROWS, JobStatus, Queue
from farm.queue.connection import explained
from farm.settings import GatewaySettings
from farm.spec import PARAMETERS, RenderRequest

BURST_SECONDS = 10.0  # worth of requests that may come at once
COUNT_SECONDS = 5.0  # that a count of pictures is used for; what was accepted since is added
COUNTED_JOBS = 5 * MAX_ROWS  # the newest of a tenant; older ones are nearly always done
MAX_TENANTS = 10_000  # remembered
# Each has a thread while it hashes, of the forty that answer everyone, and a database on the disk.
MAX_VERIFICATIONS = 8

_DEFAULTS = {
    name: int(RenderRequest.model_fields[name].default)
    for name in ("num_images", "num_inference_steps")
}


class QuotaLimits(NamedTuple):
    requests_per_second: int
    pictures: int
    row_steps: int
    asset_bytes: int

    @classmethod
    def of(cls, settings: GatewaySettings) -> "QuotaLimits":
        return cls(
            settings.quota_requests,
            settings.quota_pictures,
            settings.quota_row_steps,
            settings.quota_bytes,
        )


class Work(NamedTuple):
    """That is still to be done, or is asked for."""

    pictures: int = 0
    row_steps: int = 0

    def plus(self, other: "Work") -> "Work":
        return Work(self.pictures + other.pictures, self.row_steps + other.row_steps)


class _Use:
    """What is remembered of one tenant."""

    def __init__(self, now: float, burst: float) -> None:
        self.requests = burst  # that it may still make
        self.since = now
        self.work = Work()
        self.counted: float | None = None


class Quotas:
    """Of one gateway; requests are counted here, work and bytes in the queue's server.

    Several gateways may together let through what came to them in the last seconds.
    """

    def __init__(
        self,
        queue: Queue,
        limits: QuotaLimits,
        stored_bytes: Callable[[str], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = queue
        self._limits = limits
        self._stored_bytes = stored_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self._uses: dict[str, _Use] = {}
        self._verifying: Counter[str] = Counter()

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

    @contextmanager
    def verification(self, tenant: str) -> Iterator[None]:
        """While one runs; a tenant may have half of them, so that none can shut the others out."""
        with self._lock:
            for running, most, whose in (
                (self._verifying[tenant], MAX_VERIFICATIONS // 2, "of your "),
                (self._verifying.total(), MAX_VERIFICATIONS, ""),
            ):
                if running >= most:
                    raise OverQuota(
                        f"{running} {whose}verifications are running, as many as may at a time",
                        hint="try again when one is done",
                    )
            self._verifying[tenant] += 1
        try:
            yield
        finally:
            with self._lock:
                self._verifying[tenant] -= 1

    def take_submission(self, tenant: str, key: str | None, entries: Entries) -> None:
        """Before a submission, or a part of it, is taken in; what is sent again with the
        idempotency key of a whole job asks for nothing more."""
        if key is None or not self._queue.submitted(tenant, key):
            self._take_work(tenant, entries)

    def take_pieces(self, tenant: str, job: str, first: int, pieces: Sequence[Entries]) -> None:
        """Before consecutive pieces are taken in; those that are sent again ask for nothing, as do
        those of a job that is whole."""
        if self._queue.status(job, tenant).state is not JobState.OPEN:
            return
        known = self._queue.appended(job, first, len(pieces))
        fresh = [piece for piece, there in zip(pieces, known, strict=True) if not there]
        if fresh:
            self._take_work(tenant, *fresh)

    def _take_work(self, tenant: str, *groups: Entries) -> None:
        asked = Work()
        for kind, count in Counter(chain(*(entries.kinds for entries in groups))).items():
            asked = asked.plus(_asked(kind.value, count))
        with self._lock:
            now = self._clock()
            use = self._use(tenant, now)
            fresh = use.counted is not None and now - use.counted < COUNT_SECONDS
        counted = use.work if fresh else self._count(tenant)
        with self._lock:
            if not fresh:
                use.work, use.counted = counted, now
            self._check(use.work, asked)
            use.work = use.work.plus(asked)

    def _check(self, left: Work, asked: Work) -> None:
        """Raises ``OverQuota`` with the number that is exceeded."""
        most = Work(self._limits.pictures, self._limits.row_steps)
        names = ("pictures", "row-steps (pictures times steps)")
        for name, has, more, allowed in zip(names, left, asked, most, strict=True):
            if has + more > allowed:
                raise OverQuota(
                    f"{has:,} {name} are still to be made, and {more:,} more would be over "
                    f"{allowed:,}",
                    field="renders",
                    hint="submit them when some are done",
                )

    @explained
    def take_bytes(self, tenant: str, size: int) -> None:
        """Before a file is kept; ``give_bytes`` takes it back where it was there already."""
        most = self._limits.asset_bytes
        self._count_bytes(tenant)
        used = int(self._queue.client.hincrby(self._key, tenant, size))
        if used > most:
            self.give_bytes(tenant, size)
            raise OverQuota(
                f"{used - size:,} bytes of files are stored, and {size:,} more "
                f"would be over {most:,}",
                field="asset",
            )

    @explained
    def give_bytes(self, tenant: str, size: int) -> None:
        self._queue.client.hincrby(self._key, tenant, -size)

    @explained
    def bytes_kept(self, tenants: Iterable[str]) -> dict[str, int]:
        """Of input files, by tenant; without those that a store that is away would have to tell."""
        known: Any = self._queue.client.hkeys(self._key)
        with suppress(StoreError):
            for tenant in set(tenants).difference(known):
                self._count_bytes(tenant)
        kept: Any = self._queue.client.hgetall(self._key)
        return {str(tenant): int(size) for tenant, size in kept.items()}

    @explained
    def _count_bytes(self, tenant: str) -> None:
        """In the store, where the queue knows nothing of a tenant: a new one, or after a loss."""
        client = self._queue.client
        if client.hexists(self._key, tenant):
            return
        with self._counting:  # of a million files that takes long, so once for all who wait for it
            if not client.hexists(self._key, tenant):
                # The first of several gateways counts; what comes to them after that is added.
                client.hsetnx(self._key, tenant, self._stored_bytes(tenant))

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

    def _count(self, tenant: str) -> Work:
        left = Work()
        for status in islice(self._queue.all_jobs(tenant), COUNTED_JOBS):
            if status.state not in TERMINAL_JOBS:
                left = left.plus(_left(status))
        return left


def _left(status: JobStatus) -> Work:
    """Of a job whose pictures differ in steps, the row-steps are those of its average picture."""
    images = status.images
    pictures = max(images.total - images.done - images.failed, 0)
    return Work(pictures, -(-status.row_steps * pictures // max(images.total, 1)))


def _asked(data: Any, count: int) -> Work:
    """What so many renders ask for before they are resolved; a wrong number is refused later."""
    if not isinstance(data, dict):
        return Work()
    pictures = count * _number(data, "num_images")
    return Work(pictures, pictures * _number(data, "num_inference_steps"))


def _number(data: Mapping[str, Any], name: str) -> int:
    parameter = PARAMETERS[name]
    for word in (name, *parameter.aliases):
        given = data.get(word)
        if isinstance(given, int | float) and given > 0:  # 7.0 is 7, as in a request
            return int(min(given, parameter.most or given))
    return _DEFAULTS[name]
