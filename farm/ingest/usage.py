"""What jobs and uploads take up in the store."""

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

from farm.errors import FarmError, NotFound
from farm.ingest.job_record import tenant_of
from farm.job import is_job_id
from farm.queue import MAX_ROWS, JobStatus, Queue
from farm.store import ListedObject, Store, keys


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


def usage_of(queue: Queue, store: Store, tenant: str, *, everything: bool) -> Iterator[Usage]:
    """A tenant's jobs, newest first, and its uploads.

    Args:
        everything: also jobs that the queue has forgotten; the whole store is listed for that.
    """
    known = set()
    before = None
    while page := queue.jobs(tenant, MAX_ROWS, before):
        for status in page:
            known.add(status.id)
            yield _of_job(store, status.id)._replace(status=status)
        before = page[-1].id
    if everything:
        for job, objects in groupby(store.list(""), key=_job_of):
            if job and job not in known:
                usage = _sum(job, objects)
                if tenant_of(store, job) == tenant:
                    yield usage
    yield _sum("assets", store.list(keys.assets(tenant)))
    yield _sum("adapters", store.list(keys.adapters(tenant)))


def job_usage(queue: Queue, store: Store, tenant: str, job: str) -> Usage:
    """A tenant's job, which the queue may have forgotten.

    Raises:
        NotFound: the tenant has no such job.
    """
    try:
        status = queue.status(job, tenant)
    except NotFound:
        if tenant_of(store, job) != tenant:
            raise
        status = None
    return _of_job(store, job)._replace(status=status)


def _of_job(store: Store, job: str) -> Usage:
    return _sum(job, store.list(keys.prefix(job)))


def report(usages: Iterator[Usage]) -> Iterator[str]:
    """The lines of the answer: ``usage`` for each, ``total`` at the end."""
    objects = size = 0
    try:
        for one in usages:
            objects, size = objects + one.objects, size + one.bytes
            yield json.dumps({"usage": one.view()}) + "\n"
        yield json.dumps({"total": {"objects": objects, "bytes": size}}) + "\n"
    except FarmError as error:  # the status line has gone out long ago
        yield json.dumps({"error": error.to_dict()}) + "\n"


def _sum(name: str, found: Iterable[ListedObject]) -> Usage:
    count = size = 0
    for one in found:
        count, size = count + 1, size + one.size
    return Usage(name, count, size)


def _job_of(entry: ListedObject) -> str | None:
    parts = entry.key.split("/", 2)
    return parts[1] if len(parts) == 3 and is_job_id(parts[1]) else None
