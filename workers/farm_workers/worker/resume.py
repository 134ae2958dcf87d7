"""What earlier lives of a task left in the store, so that nothing is rendered a second time."""

import contextlib
from collections.abc import Callable, Collection, Set

from farm.errors import Conflict, NotFound
from farm.formats.manifest import ManifestRow, part_receipt, read_part
from farm.job import Chunk, Lease, Receipt
from farm.store import Store, keys
from farm_workers.publisher.record import PictureRecord, stored_row

RowId = tuple[int, int]  # of the render in its job, of the picture in its render

Read = Callable[[str], bytes]


def rows_of(chunk: Chunk) -> list[RowId]:
    """A row's place in this list is its number in what the queue knows of crashes."""
    return [
        (numbered.render, image)
        for numbered in chunk.renders
        for image in range(numbered.spec.num_images)
    ]


def earlier_receipt(read: Read, lease: Lease) -> Receipt | None:
    """Of a life that stored everything and could not say so."""
    key = keys.part(lease.job, lease.generation, lease.number)
    try:
        data = read(key)
    except NotFound:
        return None
    return part_receipt(key, data, read_part(data))


def stored_pictures(
    store: Store, read: Read, lease: Lease, chunk: Chunk, wanted: Set[RowId]
) -> list[ManifestRow]:
    """The rows of pictures that are in the store already."""
    specs = {numbered.render: numbered.spec for numbered in chunk.renders}
    records = {
        keys.picture(lease.job, lease.generation, render, image, chunk.format): PictureRecord(
            job=lease.job,
            generation=lease.generation,
            render=render,
            image=image,
            spec=specs[render],
            numerics="",  # the file says which
            format=chunk.format,
        )
        for render, image in wanted
    }
    there = {entry.key for entry in store.list(_common(records))}
    found = []
    for key in records.keys() & there:
        # Not this picture, or gone again: it is rendered, and storing it tells what is wrong.
        with contextlib.suppress(Conflict, NotFound):
            found.append(stored_row(records[key], key, read(key)))
    return found


def _common(texts: Collection[str]) -> str:
    """The start that all of them share, so that a list of the store is not longer than needed."""
    first, last = min(texts), max(texts)
    length = 0
    while length < len(first) and first[length] == last[length]:
        length += 1
    return first[:length]
