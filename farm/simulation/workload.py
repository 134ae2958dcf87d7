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


class Workload(NamedTuple):
    """Data sets that are there from the start, and people who come meanwhile."""

    lanes: Mapping[Lane, int]  # pictures of data sets in each
    steps: int = 12  # of every picture
    tenants: int = 20  # that the data sets are divided among
    normal_share: float = 0.2  # of the data sets; the rest is bulk
    shard_pictures: int = SHARD_PICTURES  # fewer of large ones
    urgent_per_second: float = 50.0  # single pictures; their times are random

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


def checkpoint_of(size: str) -> str:
    return f"simulated/{size}@1"


def submit_datasets(queue: Queue, work: Workload) -> int:
    """Submit everything that is not urgent, in shards as data sets are; returns its tasks."""
    submitted = 0
    classes = {Priority.NORMAL: work.normal_share, Priority.BULK: 1 - work.normal_share}
    for lane, pictures in work.lanes.items():
        for priority, share in classes.items():
            each = -(-round(pictures * share) // work.tenants)
            for tenant in range(work.tenants):
                for tasks in _jobs(lane, each, work):
                    _submit(queue, f"tenant-{tenant}", priority, tasks)
                    submitted += len(tasks)
    return submitted


def _jobs(lane: Lane, pictures: int, work: Workload) -> Iterator[list[TaskDraft]]:
    size = TaskLimits.of_shard(work.shard_pictures, lane).pictures
    sizes = [min(size, pictures - first) for first in range(0, pictures, size)]
    for first in range(0, len(sizes), JOB_TASKS):
        yield [
            TaskDraft(number, lane, count, count * work.steps)
            for number, count in enumerate(sizes[first : first + JOB_TASKS])
        ]


def _submit(queue: Queue, tenant: str, priority: Priority, tasks: Sequence[TaskDraft]) -> None:
    opened = queue.open(_header(tenant, priority))
    pieces = range(0, len(tasks), MAX_ROWS)
    for number, first in enumerate(pieces):
        queue.append(opened.job, number, f"{number:064x}", tasks[first : first + MAX_ROWS])
    queue.close(opened.job, len(pieces))


def submit_urgent(queue: Queue, work: Workload, draw: random.Random) -> str:
    """One picture for somebody at a screen; returns its job."""
    header = _header(f"person-{draw.randrange(PEOPLE)}", Priority.URGENT)
    lane = draw.choice(list(work.lanes))
    return queue.submit(header, [TaskDraft(0, lane, 1, work.steps)]).job


def _header(tenant: str, priority: Priority) -> JobHeader:
    return JobHeader(job_id(), tenant, JobOptions(priority=priority), secrets.token_hex(32))
