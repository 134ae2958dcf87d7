"""Scores of a job's pictures in the store: parts that are added and never changed."""

import hashlib
import re
import threading
from collections.abc import Iterator, Sequence

import pyarrow as pa

from farm.errors import InvalidInput, TooLarge
from farm.formats.scores import MAX_SCORES, PictureScores, read_scores, write_scores
from farm.store import Store, keys

_SCORER = re.compile(r"[a-z][a-z0-9_]{0,31}")
# That scores of a job may take, and for each of its pictures.
JOB_BYTES, PICTURE_BYTES = 2**20, 16 * 2**10
MAX_JOBS = 1000  # remembered


class ScoreRoom:
    """Keeps the scores of each job within bounds, so that what a job takes up in the store goes by
    its pictures.

    What a job has is looked up once, and then counted here: several gateways may each let through
    what is left.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}  # bytes by job

    def put(self, job: str, key: str, data: bytes, pictures: int) -> None:
        """Raises ``TooLarge`` where the job's scores would be."""
        with self._lock:
            held = self._held.get(job)
        if held is None:
            held = sum(entry.size for entry in self._store.list(keys.all_scores(job)))
        most = JOB_BYTES + PICTURE_BYTES * pictures
        with self._lock:
            held = self._held.setdefault(job, held)
            if held + len(data) > most:
                raise TooLarge(
                    f"the job's scores take {held:,} bytes, and {len(data):,} more would be over "
                    f"{most:,}",
                    field="rows",
                )
            self._held[job] += len(data)
            if len(self._held) > MAX_JOBS:
                self._held.pop(next(iter(self._held)))
        fresh = False
        try:
            fresh = self._store.put(key, data)
        finally:
            if not fresh:  # it was there already, or could not be stored
                with self._lock:
                    if job in self._held:
                        self._held[job] -= len(data)


def add_scores(
    room: ScoreRoom, job: str, scorer: str, rows: Sequence[PictureScores], pictures: int
) -> None:
    """Add a part; the same one again changes nothing.

    Args:
        pictures: of the job.

    Raises:
        InvalidInput: it does not hold together, or takes more than the job has left.
    """
    if not _SCORER.fullmatch(scorer):
        raise InvalidInput(f"{scorer[:40]!r} is not the name of a scorer", field="scorer")
    if not 0 < len(rows) <= MAX_SCORES:
        raise InvalidInput(f"a part has 1 to {MAX_SCORES:,} pictures", field="rows")
    try:
        data = write_scores(rows)
    except pa.ArrowException:
        raise InvalidInput("a column has values of several types", field="rows") from None
    room.put(job, keys.scores(job, scorer, hashlib.sha256(data).hexdigest()), data, pictures)


def is_removed(store: Store, job: str) -> bool:
    """Whether the job is being deleted from the store, or was."""
    return store.size(keys.header(job)) is None or store.size(keys.removed(job)) is not None


def forget_scores(store: Store, job: str) -> None:
    """The job is gone."""
    store.delete_many([entry.key for entry in store.list(keys.all_scores(job))])


def stored_scores(store: Store, job: str) -> Iterator[tuple[str, list[PictureScores]]]:
    """Each part, and its scorer."""
    for entry in store.list(keys.all_scores(job)):
        scorer = entry.key.removeprefix(keys.all_scores(job)).partition("/")[0]
        yield scorer, read_scores(store.get(entry.key))
