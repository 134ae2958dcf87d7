"""Early rows: what a task that still runs has stored, so that its pictures can be seen by then.

They are a copy for readers. The manifest part of the task says the same and more, whenever it
comes, so that early rows may be late, lost or left over, and nothing depends on them.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from farm.errors import NotFound
from farm.formats.manifest import ManifestRow, read_part, write_part
from farm.sinks.protocol import TaskPlace
from farm.store import Store, keys


class EarlyPart(NamedTuple):
    """An object with early rows."""

    moment: int  # when it was written, ms since 1970: readers go on behind the last one they saw
    generation: int
    number: int  # of the task
    key: str


def store_early(store: Store, place: TaskPlace, attempt: int, rows: Sequence[ManifestRow]) -> str:
    """Keep rows whose pictures can be read; returns the object's key."""
    moment = time.time_ns() // 1_000_000
    name = f"{moment:013d}.{place.generation}.{place.number}.{attempt}"
    key = keys.early(place.job) + name
    store.put(key, write_part(rows))
    return key


def early_parts(store: Store, job: str, after: int = 0) -> Iterator[EarlyPart]:
    """Those of tasks that have no manifest part yet, the oldest first.

    Args:
        after: the moment of the last one that was seen.
    """
    whole: dict[tuple[int, int], bool] = {}
    for entry in store.list(keys.early(job)):
        moment, generation, number, _ = map(int, entry.key.rpartition("/")[2].split("."))
        task = generation, number
        if moment > after:
            if task not in whole:
                whole[task] = store.size(keys.part(job, *task)) is not None
            if not whole[task]:
                yield EarlyPart(moment, *task, entry.key)


def early_rows(store: Store, part: EarlyPart) -> list[ManifestRow]:
    """Its rows; none if the task has ended meanwhile."""
    with contextlib.suppress(NotFound):
        return read_part(store.get(part.key))
    return []


def forget_early(store: Store, job: str) -> None:
    """The job has ended, and its manifest says it all."""
    store.delete_many([entry.key for entry in store.list(keys.early(job))])
