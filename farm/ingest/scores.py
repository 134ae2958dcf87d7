"""Scores of a job's pictures in the store: parts that are added and never changed."""

import hashlib
import re
from collections.abc import Iterator, Sequence

import pyarrow as pa

from farm.errors import InvalidInput
from farm.formats.scores import MAX_SCORES, PictureScores, read_scores, write_scores
from farm.store import Store, keys

_SCORER = re.compile(r"[a-z][a-z0-9_]{0,31}")


def add_scores(store: Store, job: str, scorer: str, rows: Sequence[PictureScores]) -> None:
    """Add a part; the same one again changes nothing.

    Raises:
        InvalidInput: it is too large, or does not hold together.
    """
    if not _SCORER.fullmatch(scorer):
        raise InvalidInput(f"{scorer[:40]!r} is not the name of a scorer", field="scorer")
    if not 0 < len(rows) <= MAX_SCORES:
        raise InvalidInput(f"a part has 1 to {MAX_SCORES:,} pictures", field="rows")
    try:
        data = write_scores(rows)
    except pa.ArrowException:
        raise InvalidInput("a column has values of several types", field="rows") from None
    store.put(keys.scores(job, scorer, hashlib.sha256(data).hexdigest()), data)


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
