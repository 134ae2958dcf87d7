"""What a scheduler says of the workers that it places: for ``farm doctor``, /readyz and metrics."""

import enum
import json
from collections.abc import Sequence
from typing import NamedTuple

from farm.queue.connection import explained
from farm.queue.queue import Queue

FRESH_SECONDS = 60  # then no scheduler places workers any more


class WorkerState(enum.StrEnum):
    WANTED = "wanted"  # it could not start, and is placed again in a moment
    PENDING = "pending"  # the cluster has no room for it
    STARTING = "starting"  # it has a process, which loads its checkpoints
    RUNNING = "running"
    DRAINING = "draining"  # it takes no more work, and ends
    GONE = "gone"


class Reason(enum.StrEnum):
    """Why a worker is in its state, for those who count; ``PlacedWorker.why`` says more."""

    NONE = ""
    CANNOT_RUN = "cannot_run"  # it ended at its start
    NO_ROOM = "no_room"  # what it needs is taken
    NO_NODE = "no_node"  # the cluster has no node with what it needs
    LOADING = "loading"
    DIED = "died"
    FROZEN = "frozen"
    NODE_DRAINED = "node_drained"
    FEWER_WANTED = "fewer_wanted"
    SETTINGS_CHANGED = "settings_changed"
    OTHER = "other"  # of a scheduler of a later version

    @classmethod
    def _missing_(cls, value: object) -> "Reason":
        return cls.OTHER


class PlacedWorker(NamedTuple):
    """One worker that a cluster runs, or should."""

    name: str
    state: WorkerState
    why: str = ""  # it does not run
    seconds: float = 0.0  # in this state
    node: str = ""  # of the cluster, where it runs
    reason: Reason = Reason.NONE

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
    return [
        PlacedWorker(
            one["name"],
            WorkerState(one["state"]),
            one["why"],
            one["seconds"],
            one["node"],
            Reason(one.get("reason", "")),
        )
        for one in json.loads(text)
        if one["state"] in set(WorkerState)
    ]


@explained
def post(queue: Queue, workers: Sequence[PlacedWorker]) -> None:
    queue.client.set(_key(queue), to_json(workers), ex=FRESH_SECONDS)


@explained
def read(queue: Queue) -> list[PlacedWorker]:
    """Nothing where no scheduler places workers on a cluster."""
    found = queue.client.get(_key(queue))
    return from_json(str(found)) if found else []


def _key(queue: Queue) -> str:
    return f"{{{queue.farm}}}:placed"
