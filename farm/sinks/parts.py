"""The manifest parts of a task: how they are written and what they say over all generations.

They are the same for every sink.
"""

import contextlib
import hashlib
from collections.abc import Container, Iterator, Sequence
from typing import Any

from farm.errors import NotFound
from farm.formats.manifest import ManifestColumns, ManifestRow, merge, read_part, write_part
from farm.formats.picture_record import PictureRecord
from farm.job import Chunk, Receipt
from farm.sinks.protocol import RowId, Sink, Source, TaskPlace
from farm.store import Store, keys

CONTENT_TYPE = "application/vnd.apache.parquet"


def rows_of(chunk: Chunk) -> list[RowId]:
    """A row's place in this list is its number in what the queue knows of crashes."""
    counts = chunk.renders.of_each(lambda spec: spec.num_images)
    return [
        (render, image)
        for render, count in zip(chunk.renders.numbers, counts, strict=True)
        for image in range(count)
    ]


def records_of(
    chunk: Chunk, generation: int, wanted: Container[RowId]
) -> dict[RowId, PictureRecord]:
    """What the task tells of its pictures; what made them is not known here."""
    return {
        (numbered.render, image): PictureRecord(
            job=chunk.job,
            generation=generation,
            render=numbered.render,
            image=image,
            spec=numbered.spec,
            numerics="",
            format=chunk.format,
            metadata=numbered.metadata,
        )
        for numbered in chunk.renders
        for image in range(numbered.spec.num_images)
        if (numbered.render, image) in wanted
    }


def store_part(store: Store, place: TaskPlace, rows: Sequence[ManifestRow]) -> Receipt:
    """Write a task's manifest part; if there is one already, that one counts."""
    assert place.part is not None
    data = part_bytes(rows)
    if not store.put(place.part, data, content_type=CONTENT_TYPE):
        data = store.get(place.part)
        rows = read_part(data)
    return part_receipt(place.part, data, rows)


def part_bytes(rows: Sequence[ManifestRow]) -> bytes:
    """A task's manifest part; it leaves out the tokens of files that hold nothing else."""
    told = ManifestColumns.of(rows)
    hashes = zip(told.column("sha256"), told.column("tokens_sha256"), strict=True)
    tokens = [
        None if of_file == of_tokens else one
        for one, (of_file, of_tokens) in zip(told.column("tokens"), hashes, strict=True)
    ]
    return write_part(told.replace(tokens=tokens))


def part_forms(rows: Sequence[ManifestRow]) -> Iterator[bytes]:
    """What the part of these rows may be: as it is written now, and as it was before."""
    yield part_bytes(rows)
    yield write_part(rows, as_before=True)


def part_receipt(part: str, data: bytes, rows: Sequence[ManifestRow]) -> Receipt:
    """What a manifest part says of its task.

    Args:
        part: its key.
        data: its bytes.
        rows: what they hold.
    """
    told = ManifestColumns.of(rows)
    done = told.column("error").count(None)
    return Receipt(
        done=done,
        failed=len(rows) - done,
        size=sum(size or 0 for size in told.column("size")),
        part=part,
        part_sha256=hashlib.sha256(data).hexdigest(),
        numerics=" + ".join(sorted(set(told.column("numerics")))),
    )


def stored_receipt(store: Store, place: TaskPlace) -> Receipt | None:
    """Of an earlier attempt that stored everything and could not say so."""
    assert place.part is not None
    try:
        data = store.get(place.part)
    except NotFound:
        return None
    return part_receipt(place.part, data, read_part(data))


def task_rows(store: Store, job: str, number: int, generations: range) -> Iterator[ManifestRow]:
    """A task's rows in those of its generations that have come to an end."""
    for generation in generations:
        with contextlib.suppress(NotFound):
            yield from read_part(store.get(keys.part(job, generation, number)))


def pictures_to_make(store: Store, sink: Sink, chunk: Chunk, generation: int) -> set[RowId]:
    """What a generation of a task has to make: every picture that no earlier one has stored."""
    made = merge(task_rows(store, chunk.job, chunk.number, range(generation)))
    wanted = set(rows_of(chunk))
    known = [row for picture, row in made.items() if picture in wanted]
    return wanted - {
        row.picture
        for stored in sink.objects(known)
        if store.size(stored.key) == stored.size
        for row in stored.rows
    }


def source_of(row: ManifestRow, sink: Sink) -> Source | None:
    """Where the picture can be read; None of one that failed."""
    return None if row.file is None else sink.source(row)


def public_row(row: ManifestRow, source: Source | None) -> dict[str, Any]:
    """The row as people see it: ``file`` is a name, ``shard`` that of the object around it, and
    ``offset`` where it begins in there.

    Args:
        row: of a picture.
        source: as ``source_of`` tells it.
    """
    return {
        **row.public(),
        "file": source and source.name,
        "shard": source and source.shard,
        "offset": source and source.offset,
    }
