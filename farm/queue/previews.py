"""What running pictures look like so far: made only while someone asks, and gone in seconds.

Asking about a job leaves a key that expires soon; the workers look for the keys of the jobs that
they draw. Previews are copies that nothing depends on: a lost one is replaced by the next.
"""

import base64
import json
from collections.abc import Collection, Sequence
from typing import NamedTuple

from farm.queue.connection import explained
from farm.queue.queue import Queue

ASKED_SECONDS = 5  # that workers make previews of a job after it was asked about
KEPT_SECONDS = 10


class Preview(NamedTuple):
    """A picture on its way."""

    render: int
    image: int
    step: int  # after which it looks so
    steps: int
    confidence: float  # mean probability of its tokens at that step
    jpeg: bytes  # small, with the mark of origin


@explained
def ask(queue: Queue, job: str) -> None:
    """Have the job's workers make previews for a few seconds."""
    queue.client.set(_asked_key(queue, job), 1, ex=ASKED_SECONDS)


@explained
def asked(queue: Queue, jobs: Collection[str]) -> set[str]:
    """Those of the jobs that were asked about in the last seconds."""
    named = sorted(jobs)
    found = queue.client.mget([_asked_key(queue, job) for job in named]) if named else []
    return {job for job, mark in zip(named, found, strict=True) if mark is not None}


@explained
def show(queue: Queue, worker: str, job: str, previews: Sequence[Preview]) -> None:
    """Replace what a worker has shown of a job."""
    text = json.dumps(
        [{**one._asdict(), "jpeg": base64.b64encode(one.jpeg).decode()} for one in previews]
    )
    key = _key(queue, job)
    with queue.client.pipeline(transaction=False) as pipeline:
        pipeline.hset(key, worker, text)
        pipeline.expire(key, KEPT_SECONDS)
        pipeline.execute()


@explained
def read(queue: Queue, job: str) -> list[Preview]:
    """What all workers show of a job, by picture."""
    told = queue.client.hvals(_key(queue, job))
    rows = [row for text in told for row in json.loads(text)]
    found = [Preview(**{**row, "jpeg": base64.b64decode(row["jpeg"])}) for row in rows]
    return sorted(found)


def _asked_key(queue: Queue, job: str) -> str:
    return f"{{{queue.farm}}}:previews-asked:{job}"


def _key(queue: Queue, job: str) -> str:
    return f"{{{queue.farm}}}:previews:{job}"
