"""Columns of a job's pictures that are added afterwards."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import NamedTuple

from farm.errors import Unavailable
from farm_client.connection import path_of
from farm_client.job import Job
from farm_client.streams import LINE_SECONDS, read_lines
from farm_client.sync import drive, iterate


class Score(NamedTuple):
    """What a scorer says of one picture."""

    render: int
    image: int
    sha256: str  # of the picture's file
    values: Mapping[str, float | int | str | bool]  # by column


def read_scores(job: Job) -> Iterator[tuple[str, Score]]:
    """Every score of the job's pictures, with its scorer."""
    return iterate(_read(job))


def add_scores(job: Job, scorer: str, scores: Sequence[Score]) -> None:
    """Add scores of up to 1,000 pictures; the same ones again change nothing."""
    path = path_of("v1", "jobs", job.id, "scores", scorer)
    rows = [score._asdict() for score in scores]
    drive(job.connection.call("POST", path, json_body={"rows": rows}))


async def _read(job: Job) -> AsyncIterator[tuple[str, Score]]:
    path = path_of("v1", "jobs", job.id, "scores")
    async with job.connection.stream(path, seconds=LINE_SECONDS) as opened:
        async for told in read_lines(opened.parts):
            if "end" in told:
                return
            for row in told["scores"]["rows"]:
                yield told["scores"]["scorer"], Score(**row)
    raise Unavailable("the farm closed the stream", hint="ask again")
