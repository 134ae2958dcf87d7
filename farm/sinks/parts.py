"""What the manifest parts of a task say of its pictures, over all its generations."""

import contextlib
from collections.abc import Iterator

from farm.errors import NotFound
from farm.formats.manifest import ManifestRow, merge, read_part
from farm.job import Chunk
from farm.store import Store, keys


def task_rows(store: Store, job: str, number: int, generations: range) -> Iterator[ManifestRow]:
    """A task's rows in those of its generations that have come to an end."""
    for generation in generations:
        with contextlib.suppress(NotFound):
            yield from read_part(store.get(keys.part(job, generation, number)))


def pictures_to_make(store: Store, chunk: Chunk, generation: int) -> set[tuple[int, int]]:
    """What a generation of a task has to make: every picture without a file of an earlier one."""
    made = merge(task_rows(store, chunk.job, chunk.number, range(generation)))
    wanted = {(one.render, row.index) for one in chunk.renders for row in one.spec.rows()}
    return {picture for picture in wanted if not _is_there(store, made.get(picture))}


def _is_there(store: Store, row: ManifestRow | None) -> bool:
    return row is not None and row.file is not None and store.size(row.file) == row.size
