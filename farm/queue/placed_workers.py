"""What a scheduler says of the workers that it places: for ``farm doctor``, /readyz and metrics."""

import enum
import json
from collections.abc import Sequence
from typing import NamedTuple

from redis.exceptions import RedisError

from farm.queue.connection import explain
from farm.queue.queue import Queue

FRESH_SECONDS = 60  # then no scheduler places workers any more


class WorkerState(enum.StrEnum):
    WANTED = "wanted"  # it could not start, and is placed again in a moment
    PENDING = "pending"  # the cluster has no room for it
    STARTING = "starting"  # it has a process, which loads its checkpoints
    RUNNING = "running"
    DRAINING = "draining"  # it takes no more work, and ends
    GONE = "gone"


class PlacedWorker(NamedTuple):
    """One worker that a cluster runs, or should."""

    name: str
    state: WorkerState
    why: str = ""  # it does not run
    seconds: float = 0.0  # in this state
    node: str = ""  # of the cluster, where it runs

    @property
    def missing(self) -> bool:
        return self.state in (WorkerState.WANTED, WorkerState.PENDING, WorkerState.STARTING)

    def __str__(self) -> str:
        why = f": {self.why}" if self.why else ""
        return f"{self.name} is {self.state} for {self.seconds:.0f} s{why}"


def to_json(workers: Sequence[PlacedWorker]) -> str:
    return json.dumps([worker._asdict() for worker in workers])


def from_json(text: str) -> list[PlacedWorker]:
    """Of what a newer scheduler says, as much as is understood here: both may run side by side."""
    found = [
        {name: told for name, told in one.items() if name in PlacedWorker._fields}
        for one in json.loads(text)
        if one["state"] in set(WorkerState)
    ]
    return [PlacedWorker(**{**one, "state": WorkerState(one["state"])}) for one in found]


def post(queue: Queue, workers: Sequence[PlacedWorker]) -> None:
    try:
        queue.client.set(_key(queue), to_json(workers), ex=FRESH_SECONDS)
    except RedisError as error:
        raise explain(error) from error


def read(queue: Queue) -> list[PlacedWorker]:
    """Nothing where no scheduler places workers on a cluster."""
    try:
        found = queue.client.get(_key(queue))
    except RedisError as error:
        raise explain(error) from error
    return from_json(str(found)) if found else []


def _key(queue: Queue) -> str:
    return f"{{{queue.farm}}}:placed"
