"""What is known of one worker on a cluster."""

from typing import Any, NamedTuple

from farm.queue.placed_workers import PlacedWorker, Reason, WorkerState
from farm.worker_group import WorkerGroup

ACTORS = "farm-"  # before their workers' names, for those who look at Ray's dashboard
JOIN_SECONDS = 5.0  # of one pending call; the next one follows at once
FROZEN_SECONDS = 20.0  # that its answer may be late; a process that is stopped never answers


class Life(NamedTuple):
    """What an actor says of its process."""

    token: str  # in the information of its sessions
    fingerprint: str  # of what it was placed with
    node: str  # of the cluster


class Place:
    """One worker of a group, from when it is wanted until it is gone.

    Times are those of the placement's clock.
    """

    def __init__(self, name: str, group: WorkerGroup, now: float) -> None:
        self.name = name
        self.group = group
        self.wanted = True
        self.actor: Any = None
        self.asked: Any = None  # pending call for its life
        self.life: Life | None = None
        self.joined: Any = None  # pending call that fails when it dies
        self.answers_by = 0.0  # when that call is late
        self.ends_by: float | None = None  # it drains until then
        self.retry_at = 0.0
        self._shown = PlacedWorker(name, WorkerState.WANTED)
        self._since = now

    def join(self, now: float) -> None:
        call = self.actor.join.options(name=f"{ACTORS}{self.name}")  # Ray names the process so
        self.joined = call.remote(JOIN_SECONDS)
        self.answers_by = now + JOIN_SECONDS + FROZEN_SECONDS

    def drain(self, seconds: float, now: float, reason: Reason, why: str) -> None:
        """Ask it to end; an earlier end that was asked for stays."""
        if self.ends_by is None or self.ends_by > now + seconds + 1:
            self.actor.drain.remote(seconds)
            self.ends_by = now + seconds
            self.show(WorkerState.DRAINING, now, reason, why)

    def forget(self) -> str | None:
        """Ray starts the actor again: wait for its new life, which has not been asked to end;
        returns the token of the old one."""
        life, self.life, self.asked, self.joined = self.life, None, None, None
        self.ends_by = None
        return life.token if life else None

    def leave(self, retry_at: float) -> str | None:
        """The actor is no more; if the worker is wanted, another one is placed at that time."""
        self.actor, self.retry_at = None, retry_at
        return self.forget()

    def show(
        self, state: WorkerState, now: float, reason: Reason = Reason.NONE, why: str = ""
    ) -> None:
        if state is not self._shown.state:
            self._since = now
        self._shown = PlacedWorker(self.name, state, why, reason=reason)

    def shown(self, now: float) -> PlacedWorker:
        node = self.life.node if self.life else ""
        return self._shown._replace(seconds=round(now - self._since, 1), node=node)


def why_no_room(group: WorkerGroup, nodes: list[dict[str, float]]) -> tuple[Reason, str]:
    """Why a cluster with nodes of these resources does not start a worker."""
    needs = {"GPU": group.gpus, "CPU": group.cpus}
    told = " and ".join(f"{amount:g} {name}" for name, amount in needs.items() if amount)
    if any(all(node.get(name, 0) >= amount for name, amount in needs.items()) for node in nodes):
        wanted = told or "its processor"
        return Reason.NO_ROOM, f"{wanted} must become free on a node of the cluster"
    return Reason.NO_NODE, f"no node of the cluster has {told}"
