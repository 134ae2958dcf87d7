"""What the users of a simulated farm submit."""

import random
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from farm.ingest.chunks import TaskLimits
from farm.job import SHARD_PICTURES, JobOptions, Priority, TaskDraft, job_id
from farm.queue import MAX_ROWS, JobHeader, Queue
from farm.simulation.service import Service
from farm.spec import Lane, Mode

MODES = {Mode.TEXT2IMG: 0.6, Mode.IMG2IMG: 0.2, Mode.INPAINT: 0.2}  # of a size's pictures
JOB_TASKS = 1000
PEOPLE = 100  # tenants of urgent pictures


class DataSet(NamedTuple):
    """A job that is not urgent."""

    tenant: str
    priority: Priority
    tasks: Sequence[TaskDraft]


class Workload(NamedTuple):
    """Data sets, and people who come meanwhile."""

    lanes: Mapping[Lane, int]  # pictures of data sets in each
    steps: int = 12  # of every picture
    tenants: int = 20  # that the data sets are divided among
    normal_share: float = 0.2  # of the data sets; the rest is bulk
    shard_pictures: int = SHARD_PICTURES  # fewer of large ones
    urgent_per_second: float = 50.0  # single pictures; their times are random
    spread_seconds: float = 0.0  # in which the data sets come, at random times; 0: at the start

    @classmethod
    def mixed(cls, pictures: int, services: Mapping[str, Service], **given: Any) -> "Workload":
        """Equal shares of each size, with a checkpoint of its own, in three modes."""
        lanes = {}
        for size in sorted(services):
            height, width = (int(side) for side in size.split("x"))
            for mode, share in MODES.items():
                lane = Lane(checkpoint_of(size), mode, height, width)
                lanes[lane] = round(pictures / len(services) * share)
        return cls(lanes, **given)

    def arrivals(self, draw: random.Random) -> Iterator[tuple[float, DataSet]]:
        """All data sets, in shards, and when they come."""
        classes = {Priority.NORMAL: self.normal_share, Priority.BULK: 1 - self.normal_share}
        for lane, pictures in self.lanes.items():
            for priority, share in classes.items():
                whole = round(pictures * share)
                for tenant in range(self.tenants):
                    each = whole * (tenant + 1) // self.tenants - whole * tenant // self.tenants
                    for tasks in _jobs(lane, each, self):
                        at = draw.random() * self.spread_seconds
                        yield at, DataSet(f"tenant-{tenant}", priority, tasks)


def checkpoint_of(size: str) -> str:
    return f"simulated/{size}@1"


def _jobs(lane: Lane, pictures: int, work: Workload) -> Iterator[list[TaskDraft]]:
    size = TaskLimits.of_shard(work.shard_pictures, lane).pictures
    sizes = [min(size, pictures - first) for first in range(0, pictures, size)]
    for first in range(0, len(sizes), JOB_TASKS):
        yield [
            TaskDraft(number, lane, count, count * work.steps)
            for number, count in enumerate(sizes[first : first + JOB_TASKS])
        ]


def submit(queue: Queue, data_set: DataSet) -> str:
    """In pieces; returns its job."""
    opened = queue.open(_header(data_set.tenant, data_set.priority))
    pieces = range(0, len(data_set.tasks), MAX_ROWS)
    for number, first in enumerate(pieces):
        tasks = data_set.tasks[first : first + MAX_ROWS]
        queue.append(opened.job, number, f"{number:064x}", tasks)
    queue.close(opened.job, len(pieces))
    return opened.job


def submit_urgent(queue: Queue, work: Workload, draw: random.Random) -> str:
    """One picture for somebody at a screen; returns its job."""
    header = _header(f"person-{draw.randrange(PEOPLE)}", Priority.URGENT)
    lane = draw.choice(list(work.lanes))
    return queue.submit(header, [TaskDraft(0, lane, 1, work.steps)]).job


def _header(tenant: str, priority: Priority) -> JobHeader:
    return JobHeader(job_id(), tenant, JobOptions(priority=priority), secrets.token_hex(32))
