"""What the API says of things: plain JSON."""

from collections.abc import Container, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from farm.errors import FarmError, RejectedRender
from farm.formats.manifest import ManifestRow
from farm.gateway.signed_urls import Links
from farm.ingest.ingest import MAX_LISTED
from farm.job import Chunk
from farm.queue import Failure, JobStatus
from farm.queue.why import Why


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
    }


def image_view(row: ManifestRow, links: Links) -> dict[str, Any]:
    """A picture with an address to fetch it from; ``file`` is a name, not a key."""
    name = None if row.file is None else PurePosixPath(row.file).name
    url = None if row.file is None or name is None else links.to(row.file, name)
    return {**row.public(), "file": name, "url": url}


def lost_views(
    chunk: Chunk, failure: Failure, lost: Container[tuple[int, int]]
) -> Iterator[dict[str, Any]]:
    """The pictures that a task without attempts left has lost: no manifest part says so."""
    error = FarmError(failure.reason).to_dict()
    for numbered in chunk.renders:
        spec = numbered.spec.model_dump(mode="json")
        for row in numbered.spec.rows():
            if (numbered.render, row.index) not in lost:
                continue
            yield {
                "render": numbered.render,
                "image": row.index,
                "generation": failure.generation,
                "file": None,
                "url": None,
                "sha256": None,
                "size": None,
                "width": numbered.spec.width,
                "height": numbered.spec.height,
                "seed": row.seed,
                "tokens_sha256": None,
                "numerics": None,
                "notes": [],
                "error": error,
                "spec": spec,
            }


def rejected_view(rejected: Iterable[RejectedRender]) -> list[dict[str, Any]]:
    return [one.to_dict() for one in list(rejected)[:MAX_LISTED]]
