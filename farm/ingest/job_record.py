"""What is stored of a job beside its chunks."""

import json
from datetime import datetime
from typing import Any

from farm.errors import NotFound
from farm.job import Format
from farm.store import Store, keys
from farm.stored_record import StoredRecord


class JobRecord(StoredRecord):
    """``job.json``: with it and the chunks an empty queue can be filled again.

    Options are kept as they were checked when the job came in; a deadline may have passed since.
    """

    job: str
    tenant: str
    options: dict[str, Any]
    seed: int
    sink: str
    format: Format
    fingerprint: str
    created_at: datetime
    paces: dict[str, float]  # row-steps/s by lane, so that the same piece is always cut alike
    shard_size: int | None = None  # pictures, where a task becomes a shard
    retention_days: float | None = None  # for how long the queue knows it after its end
    whole: bool = False  # the job came in one call; else ``closed.json`` says when it is whole
    rejected: int = 0  # renders, of a job that came in one call


class ClosedRecord(StoredRecord):
    """``closed.json``: a job that came in by pieces is whole."""

    pieces: int
    rejected: int  # renders


class RemovedRecord(StoredRecord):
    """``_REMOVED``: the job's other objects are being deleted."""

    job: str
    tenant: str
    removed_at: datetime


def tenant_of(store: Store, job: str) -> str | None:
    """Whose job it is, as the store has it; None where nothing there says so."""
    for key in (keys.removed(job), keys.header(job)):
        try:
            return str(json.loads(store.get(key))["tenant"])
        except (NotFound, ValueError, KeyError, TypeError):
            continue
    return None
