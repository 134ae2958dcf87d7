"""Jobs, pictures and the like as the API's plain JSON."""

import base64
from collections.abc import Container, Iterable, Iterator
from typing import Any

from farm.errors import FarmError, RejectedRender
from farm.formats.manifest import ManifestRow
from farm.formats.picture_record import PictureRecord
from farm.gateway.signed_urls import Links
from farm.ingest.ingest import MAX_LISTED
from farm.job import Chunk
from farm.queue import Failure, JobStatus
from farm.queue.previews import Preview
from farm.queue.why import Why
from farm.sinks.parts import public_row, source_of
from farm.sinks.protocol import Sink, Source


def status_view(status: JobStatus) -> dict[str, Any]:
    return status.model_dump(mode="json")


def why_view(why: Why) -> dict[str, Any]:
    return {
        "status": status_view(why.status),
        "waits_for": str(why.waits_for),
        "alone": why.alone,
        "lanes": [
            {**queue._asdict(), "lane": str(queue.lane), "share": queue.share}
            for queue in why.lanes
        ],
        "workers": why.workers,
        "seconds": why.seconds,
        "note": why.note,
    }


def image_view(row: ManifestRow, sink: Sink, links: Links) -> dict[str, Any]:
    """A picture with an address to fetch it from; ``file`` is a name, not a key."""
    source = source_of(row, sink)
    return {**public_row(row, source), "url": source and links.to(source)}


def shard_views(rows: Iterable[ManifestRow], sink: Sink, links: Links) -> list[dict[str, Any]]:
    """The shards around these pictures, with addresses to fetch them whole or by ranges."""
    if not sink.sharded:
        return []
    found = ((one, Source(one.key, one.name, one.size)) for one in sink.objects(rows))
    return [
        {
            "shard": stored.name,
            "generation": stored.rows[0].generation,
            "size": stored.size,
            "sha256": stored.sha256,
            "url": links.to(source),
            "gateway_url": links.through_gateway(source),
        }
        for stored, source in found
    ]


def lost_views(
    chunk: Chunk, failure: Failure, lost: Container[tuple[int, int]]
) -> Iterator[dict[str, Any]]:
    """The pictures of a task that ran out of attempts; they are in no manifest part."""
    error = FarmError(failure.reason)
    for numbered in chunk.renders:
        for row in numbered.spec.rows():
            if (numbered.render, row.index) in lost:
                record = PictureRecord(
                    chunk.job,
                    failure.generation,
                    numbered.render,
                    row.index,
                    numbered.spec,
                    numerics="",
                    format=chunk.format,
                    metadata=numbered.metadata,
                )
                # Nothing was computed, so there is no numerics class.
                yield {
                    **record.failed_row(error).public(),
                    "numerics": None,
                    "shard": None,
                    "offset": None,
                    "url": None,
                }


def preview_view(preview: Preview) -> dict[str, Any]:
    picture = base64.b64encode(preview.jpeg).decode()
    facts = preview._asdict()
    del facts["jpeg"]
    return {**facts, "picture": f"data:image/jpeg;base64,{picture}"}


def rejected_view(rejected: Iterable[RejectedRender]) -> list[dict[str, Any]]:
    return [one.to_dict() for one in list(rejected)[:MAX_LISTED]]
