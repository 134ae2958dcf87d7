"""Resolved renders become chunks, the contents of tasks; the same renders are always cut alike."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate
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
)
from farm.renders import Renders
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

    def cut(self, piece: int, renders: Renders) -> Iterator[Chunk]:
        """The chunks of one piece of the job, lane by lane."""
        lanes: dict[Lane, list[int]] = {}
        of_kind = [lanes.setdefault(spec.lane, []) for spec in renders.specs]
        for place, kind in enumerate(renders.kinds):
            of_kind[kind].append(place)
        found = [renders] if len(lanes) == 1 else map(renders.at, lanes.values())
        groups = (
            (lane, group)
            for lane, alike in zip(lanes, found, strict=True)
            for group in split(alike, self.limits(lane))
        )
        for number, (lane, group) in enumerate(groups, piece * MAX_PIECE_LINES):
            yield Chunk(
                job=self.job,
                number=number,
                tenant=self.tenant,
                sink=self.sink,
                format=self.format,
                lane=str(lane),
                renders=group,
            )


def split(renders: Renders, limits: TaskLimits) -> Iterator[Renders]:
    """Groups within the limits, in order."""
    pictures = [0, *accumulate(renders.of_each(lambda spec: spec.num_images))]
    cost = [0, *accumulate(renders.of_each(lambda spec: spec.cost))]
    row_steps = int(min(limits.row_steps, cost[-1]))
    start = 0
    while start < len(renders):
        within_pictures = bisect_right(pictures, pictures[start] + limits.pictures) - 1
        within_cost = bisect_right(cost, cost[start] + row_steps) - 1
        end = max(min(within_pictures, within_cost), start + 1)
        yield renders[start:end]
        start = end
