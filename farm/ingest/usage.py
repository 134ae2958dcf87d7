"""What jobs and uploads take up in the store."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from farm.errors import NotFound
from farm.ingest.job_record import tenant_of
from farm.job import is_job_id
from farm.queue import JobStatus, Queue
from farm.store import ListedObject, Store, keys

BLOCK = 10_000  # objects between two signs of life


class Usage(NamedTuple):
    """Objects and their bytes: of a job, or of a kind of uploads."""

    name: str  # a job's id, ``assets`` or ``adapters``
    objects: int
    bytes: int
    status: JobStatus | None = None  # None where the queue does not know it

    def view(self) -> dict[str, Any]:
        status = self.status
        return {
            "name": self.name,
            "objects": self.objects,
            "bytes": self.bytes,
            "title": status and status.name,
            "state": status and str(status.state),
        }


def usage_of(
    queue: Queue, store: Store, tenant: str, *, everything: bool
) -> Iterator[Usage | None]:
    """A tenant's jobs, newest first, and its uploads; None now and then while a large one is
    counted, as a sign of life.

    Args:
        everything: also jobs that the queue has forgotten; for that, two small objects of every job
            in the store are looked up, and nothing but the tenant's own is listed.
    """
    known = set()
    for status in queue.all_jobs(tenant):
        known.add(status.id)
        yield from _of_job(store, status.id, status)
    if everything:
        for job in _stored_jobs(store):
            if job not in known and tenant_of(store, job) == tenant:
                yield from _of_job(store, job)
    yield from _sum("assets", store.list(keys.assets(tenant)))
    yield from _sum("adapters", store.list(keys.adapters(tenant)))


def job_usage(queue: Queue, store: Store, tenant: str, job: str) -> Iterator[Usage | None]:
    """The same of a tenant's job, which the queue may have forgotten.

    Raises:
        NotFound: the tenant has no such job.
    """
    try:
        status = queue.status(job, tenant)
    except NotFound:
        if tenant_of(store, job) != tenant:
            raise
        status = None
    return _of_job(store, job, status)


def _of_job(store: Store, job: str, status: JobStatus | None = None) -> Iterator[Usage | None]:
    return _sum(job, store.list(keys.prefix(job)), status)


def report(usages: Iterator[Usage | None]) -> Iterator[dict[str, Any]]:
    """The lines of the answer: ``usage`` for each, ``total`` at the end; ``counting`` meanwhile, so
    that no client or proxy gives up."""
    objects = size = 0
    for one in usages:
        if one is None:
            yield {"counting": {}}
            continue
        objects, size = objects + one.objects, size + one.bytes
        yield {"usage": one.view()}
    yield {"total": {"objects": objects, "bytes": size}}


def asset_bytes(store: Store, tenant: str) -> int:
    """Of a tenant's input files, as its quota counts them: without what is noted beside each."""
    found = store.list(keys.assets(tenant))
    return sum(one.size for one in found if not one.key.endswith(".json"))


def _sum(
    name: str, found: Iterable[ListedObject], status: JobStatus | None = None
) -> Iterator[Usage | None]:
    count = size = 0
    for one in found:
        count, size = count + 1, size + one.size
        if count % BLOCK == 0:
            yield None
    yield Usage(name, count, size, status)


def _stored_jobs(store: Store) -> Iterator[str]:
    """Ids of the jobs of all tenants that have anything in the store."""
    for above in store.folders(""):
        for folder in store.folders(above):
            job = folder.removeprefix(above).rstrip("/")
            if is_job_id(job):
                yield job
