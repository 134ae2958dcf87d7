"""Jobs, pictures and the like as the API shows them."""

import base64
from collections.abc import Container, Iterable, Iterator

from farm.errors import FarmError, RejectedRender
from farm.formats.manifest import ManifestRow
from farm.gateway import answers
from farm.gateway.signed_urls import Links
from farm.ingest.ingest import MAX_LISTED
from farm.job import Chunk
from farm.queue import Failure
from farm.queue.previews import Preview
from farm.queue.why import Why
from farm.sinks.parts import public_row, records_of, source_of
from farm.sinks.protocol import Sink, Source


def why_view(why: Why) -> answers.Why:
    lanes = [
        answers.LaneQueue(**{**queue._asdict(), "lane": str(queue.lane)}, share=queue.share)
        for queue in why.lanes
    ]
    return answers.Why(**{**why._asdict(), "lanes": lanes})


def image_view(row: ManifestRow, sink: Sink, links: Links) -> answers.Image:
    """A picture with an address to fetch it from; ``file`` is a name, not a key."""
    source = source_of(row, sink)
    return answers.Image(**public_row(row, source), url=source and links.to(source))


def shard_views(rows: Iterable[ManifestRow], sink: Sink, links: Links) -> list[answers.Shard]:
    """The shards around these pictures, with addresses to fetch them whole or by ranges."""
    if not sink.sharded:
        return []
    found = ((one, Source(one.key, one.name, one.size)) for one in sink.objects(rows))
    return [
        answers.Shard(
            shard=stored.name,
            generation=stored.rows[0].generation,
            size=stored.size,
            sha256=stored.sha256,
            url=links.to(source),
            gateway_url=links.through_gateway(source),
        )
        for stored, source in found
    ]


def lost_views(
    chunk: Chunk, failure: Failure, lost: Container[tuple[int, int]]
) -> Iterator[answers.Image]:
    """The pictures of a task that ran out of attempts; they are in no manifest part."""
    error = FarmError(failure.reason)
    for record in records_of(chunk, failure.generation, lost).values():
        # Nothing was computed, so there is no numerics class.
        facts = {**record.failed_row(error).public(), "numerics": None}
        yield answers.Image(**facts, shard=None, offset=None, url=None)


def preview_view(preview: Preview) -> answers.Preview:
    facts = preview._asdict()
    picture = base64.b64encode(facts.pop("jpeg")).decode()
    return answers.Preview(**facts, picture=f"data:image/jpeg;base64,{picture}")


def rejected_view(rejected: Iterable[RejectedRender]) -> list[answers.Rejected]:
    return [answers.Rejected(**one.to_dict()) for one in list(rejected)[:MAX_LISTED]]
