"""Resolved renders become chunks, the contents of tasks; the same renders are always cut alike."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from farm.errors import InvalidInput
from farm.job import (
    MAX_PIECE_LINES,
    MAX_TASK_PICTURES,
    SHARD_PICTURES,
    SHARD_PIXELS,
    TASK_SECONDS,
    Chunk,
    Format,
    JobOptions,
    NumberedSpec,
)
from farm.sinks.protocol import Sink
from farm.spec import Lane


class TaskLimits(NamedTuple):
    """What one task holds at most; a single render that is larger stays whole."""

    pictures: int
    row_steps: float

    @classmethod
    def by_pace(cls, row_steps_per_second: float) -> "TaskLimits":
        """About as much as a worker does in ``TASK_SECONDS``."""
        return cls(MAX_TASK_PICTURES, row_steps_per_second * TASK_SECONDS)

    @classmethod
    def of_shard(cls, shard_size: int, lane: Lane) -> "TaskLimits":
        """A task that becomes a shard holds as much whatever the machines' pace is."""
        return cls(min(shard_size, max(SHARD_PIXELS // (lane.height * lane.width), 1)), math.inf)


def shard_size_of(options: JobOptions, sink: Sink) -> int | None:
    """Pictures in a shard; None where the sink stores each picture by itself.

    Raises:
        InvalidInput: a size was given to such a sink.
    """
    if sink.sharded:
        return options.shard_size or SHARD_PICTURES
    if options.shard_size is not None:
        raise InvalidInput(
            f"the sink {options.sink!r} stores each picture by itself",
            field="shard_size",
            hint="leave it out, or take a sink of shards, such as webdataset",
        )
    return None


class Cutter(NamedTuple):
    """What the chunks of a job have in common."""

    job: str
    tenant: str
    sink: str
    format: Format
    limits: Callable[[Lane], TaskLimits]

    def cut(self, piece: int, renders: Iterable[NumberedSpec]) -> Iterator[Chunk]:
        """The chunks of one piece of the job, lane by lane."""
        lanes: dict[Lane, list[NumberedSpec]] = {}
        for numbered in renders:
            lanes.setdefault(numbered.spec.lane, []).append(numbered)
        groups = (
            (lane, group)
            for lane, found in lanes.items()
            for group in split(found, self.limits(lane))
        )
        for number, (lane, group) in enumerate(groups, piece * MAX_PIECE_LINES):
            yield Chunk(
                job=self.job,
                number=number,
                tenant=self.tenant,
                sink=self.sink,
                format=self.format,
                lane=str(lane),
                renders=tuple(group),
            )


def split(renders: Iterable[NumberedSpec], limits: TaskLimits) -> Iterator[list[NumberedSpec]]:
    """Groups within the limits, in order."""
    group: list[NumberedSpec] = []
    pictures = cost = 0
    for numbered in renders:
        spec = numbered.spec
        full = pictures + spec.num_images > limits.pictures or cost + spec.cost > limits.row_steps
        if group and full:
            yield group
            group, pictures, cost = [], 0, 0
        group.append(numbered)
        pictures += spec.num_images
        cost += spec.cost
    if group:
        yield group
