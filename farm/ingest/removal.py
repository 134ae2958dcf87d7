"""How a job leaves the farm: the queue forgets it, then everything that it has in the store goes.

A process may die at any point. From the first step on no part of the farm shows the job. Its entry
among the queue's removals, or the object ``_REMOVED`` where the queue was lost, makes the next call
or the scheduler go on.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from farm.errors import StoreError
from farm.ingest.job_record import RemovedRecord, tenant_of
from farm.queue import Queue, Removal
from farm.store import ListedObject, Store, keys

BLOCK = 4000  # objects between two reports

log = logging.getLogger(__name__)


class Deleted(NamedTuple):
    """What has gone so far."""

    objects: int
    bytes: int

    def and_also(self, more: Sequence[ListedObject]) -> "Deleted":
        return Deleted(self.objects + len(more), self.bytes + sum(one.size for one in more))


class Remover:
    """Removes jobs; several may be at work on the same one."""

    def __init__(self, queue: Queue, store: Store) -> None:
        self._queue = queue
        self._store = store
        self._elsewhere: set[str] = set()  # removals that are those of another store

    def remove(self, job: str, tenant: str) -> Iterator[Deleted]:
        """Remove a tenant's job, or go on with that; what was deleted, after every block.

        Raises:
            NotFound: there is no such job.
            Conflict: it has not ended.
        """
        stored = tenant_of(self._store, job) == tenant  # the queue may have forgotten it
        removal, settled = self._queue.remove(job, tenant, stored=stored)
        return self._delete(removal, settled)

    def sweep(self) -> int:
        """Delete what is left of removed jobs that no worker adds to; returns how many are gone.

        One that cannot be removed keeps none of the others.
        """
        gone = stay = 0
        failed: dict[str, StoreError] = {}  # by job
        while removals := self._queue.removals(stay):
            for removal in removals:
                try:
                    swept = self._sweep(removal)
                except StoreError as error:
                    swept, failed[removal.job] = False, error
                gone, stay = gone + swept, stay + (not swept)
        if failed:
            job, why = next(iter(failed.items()))
            log.warning("%d removed jobs are not deleted yet, as %s: %s", len(failed), job, why)
        return gone

    def _sweep(self, removal: Removal) -> bool:
        """Whether it is gone; a job that this store does not know is left to its own."""
        marks = keys.removed(removal.job), keys.header(removal.job)
        if all(self._store.size(key) is None for key in marks):
            if removal.entry not in self._elsewhere:
                self._elsewhere.add(removal.entry)
                log.warning("%s has no job %s to remove", self._store.url, removal.job)
            return False
        for deleted in self._delete(removal, settled=True):
            last = deleted
        log.info("removed job %s: %d objects, %d bytes", removal.job, *last)
        return True

    def _delete(self, removal: Removal, settled: bool) -> Iterator[Deleted]:
        """``_SUCCESS`` goes first, so that the rest never looks whole, and ``job.json`` last."""
        job, tenant = removal.job, removal.tenant
        mark, header = keys.removed(job), keys.header(job)
        record = RemovedRecord(job=job, tenant=tenant, removed_at=datetime.now(UTC))
        self._store.put(mark, record.model_dump_json().encode())
        deleted = Deleted(0, 0)
        for start in (keys.success(job), keys.prefix(job)):
            found = (one for one in self._store.list(start) if one.key not in (mark, header))
            while block := list(itertools.islice(found, BLOCK)):
                self._store.delete_many([one.key for one in block])
                deleted = deleted.and_also(block)
                yield deleted
        size = self._store.size(header)
        self._store.delete(header)
        if settled:
            # While the queue lists it, the mark is there: a scheduler with another store than the
            # farm's is not misled.
            self._queue.removed(removal)
            self._store.delete(mark)
            self._store.prune(keys.prefix(job))
        yield deleted if size is None else Deleted(deleted.objects + 1, deleted.bytes + size)


def report(deleted: Iterator[Deleted]) -> Iterator[dict[str, Any]]:
    """The lines of the answer: ``removing`` after every block, ``removed`` at the end."""
    last = Deleted(0, 0)
    for last in deleted:
        yield {"removing": last._asdict()}
    yield {"removed": last._asdict()}
