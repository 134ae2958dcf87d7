"""Workers on a Ray cluster: placed, found again, drained, and certified dead."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import ray
import ray.job_config
from ray._private.state import state as ray_state  # draining nodes and pending actors: no other way
from ray.exceptions import ActorUnavailableError, RayActorError

import farm
from farm.addresses import reachable
from farm.awake_clock import AwakeClock
from farm.errors import Unavailable
from farm.queue.placed_workers import PlacedWorker, Reason, WorkerState
from farm.scheduler.place import ACTORS, Life, Place, why_no_room
from farm.worker_group import WorkerGroup

log = logging.getLogger(__name__)

NODES_SECONDS = 2.0  # between two looks at the cluster's nodes
RETRY_SECONDS = 5.0  # before a worker that could not start is placed again
ACTOR_THREADS = 8  # each may wait for a scheduler that is gone
SURPLUS_SECONDS = 120.0  # that a worker has to finish what it holds if nothing hurries
STORING_SECONDS = 75.0  # that an end may take after a drain's deadline
MARGIN_SECONDS = 10.0  # before a node's own deadline
PENDING_SECONDS = 60.0  # without room, then a worker does not hold up the change of others
UNSET_SECONDS = 60.0  # of a node that drains without a deadline
CLOSING_SECONDS = 0.02  # between two looks at workers that are being ended


class Placement:
    """Keeps detached actors alive, ``count`` of each group.

    No work travels by Ray's calls: an actor leases for itself, so nothing is lost when the process
    with this object dies. Ray restarts an actor that crashes; ``deaths`` says so at once, from one
    pending ``join`` call per actor, where a lease would take seconds to run out.

    A worker that is not wanted any more, whose node is drained, or whose settings have changed
    takes no more work, finishes what it can and ends; of the last kind one at a time in each group,
    so that old and new ones run side by side.

    Args:
        actor: the workers' class; made with a name, the environment and its fingerprint.
        address: of the cluster's head, ``host:port``.
        farm: tells this farm's actors from those of others on the cluster.
        groups: of workers.
        environment: settings of the workers, on top of their node's environment; an argument
            and not a runtime_env, which the dashboard would show with every secret in it.
        wanted: how many workers each group has at first; ``want`` changes it.
        passing: names of settings that do not make another worker of one.
        metadata: what Ray's dashboard shows of this driver.
        report: called for a worker that cannot run, with its name and the cause in one line.
    """

    def __init__(
        self,
        actor: type,
        address: str,
        farm: str,
        groups: Sequence[WorkerGroup],
        environment: Mapping[str, str],
        *,
        wanted: Mapping[str, int],
        passing: Sequence[str] = (),
        metadata: Mapping[str, str] = MappingProxyType({}),
        report: Callable[[str, str], None] = lambda worker, cause: None,
    ) -> None:
        digest = hashlib.sha256(farm.encode()).hexdigest()[:12]
        ray.init(
            address=address,
            namespace=f"farm-{digest}",
            log_to_driver=False,
            logging_level=logging.ERROR,
            job_config=ray.job_config.JobConfig(metadata=dict(metadata)),
        )
        self._address = address
        self._node = ray.get_runtime_context().get_node_id()
        self._clock = AwakeClock()
        self._nodes_at = 0.0  # when the cluster's nodes are looked at next
        self._nodes: list[dict[str, float]] = []  # resources of those that take workers
        self._draining: dict[str, float] = {}  # node -> seconds that it stays
        self._actor = actor
        self._report = report
        self._environment = dict(environment)
        self._passing = frozenset(passing)
        self._groups = {group.name: group for group in groups}
        self._places: dict[str, Place] = {}
        self._find_others()
        self.want(wanted)

    def want(self, counts: Mapping[str, int]) -> None:
        """Set how many workers groups have from now on."""
        now = self._clock()
        for name, count in counts.items():
            if (group := self._groups.get(name)) is None:
                continue
            names = group.workers(count)
            for worker in names:
                if worker not in self._places:
                    self._places[worker] = Place(worker, group, now)
            for place in self._places.values():
                if place.group is group:
                    place.wanted = place.name in names

    def workers(self) -> list[PlacedWorker]:
        """All of them, by name."""
        now = self._clock()
        return [self._places[name].shown(now) for name in sorted(self._places)]

    def deaths(self) -> list[str]:
        """Lives of workers that have ended since the last call; never blocks."""
        dead = []
        self._clock()
        for place in list(self._places.values()):
            died = None
            try:
                died = self._visit(place)
            except ActorUnavailableError:  # Ray is starting it again
                died = place.forget()
                why = "it died, and starts again"
                place.show(WorkerState.STARTING, self._clock(), Reason.DIED, why)
            except RayActorError as error:
                died = self._lose(place, _cause(error))
            if died is not None:
                log.warning("%s has ended, life %s", place.name, died)
                dead.append(died)
            if not place.wanted and place.actor is None:
                log.info("%s is gone", place.name)
                del self._places[place.name]
        return dead

    def check(self) -> None:
        """Raises ``Unavailable`` if this is not the cluster any more that it was connected to: it
        has died, or another one has taken its address. Where Ray finds that out in its own code,
        it ends the process."""
        if not reachable(self._address.removeprefix("ray://")):
            raise Unavailable(f"nothing listens at {self._address}")
        if time.monotonic() >= self._nodes_at:
            self._nodes_at = time.monotonic() + NODES_SECONDS
            alive = {node["NodeID"]: node["Resources"] for node in _nodes() if node["Alive"]}
            if self._node not in alive:
                raise Unavailable(f"the node {self._node[:8]} has left the cluster")
            self._draining = dict(_draining_nodes())
            self._nodes = [kept for node, kept in alive.items() if node not in self._draining]

    def close(self) -> None:
        """End the workers; Ray does not start them again. Returns when the cluster knows: Ray only
        posts what ``ray.kill`` asks for, and a process that ends at once takes that with it."""
        actors = [place.actor for place in self._places.values() if place.actor is not None]
        for actor in actors:
            ray.kill(actor)
        while not all(_is_dead(actor) for actor in actors):
            time.sleep(CLOSING_SECONDS)

    def _find_others(self) -> None:
        """Workers that an earlier scheduler placed and this one does not want."""
        found: list[str] = ray.util.list_named_actors()
        for name in (actor.removeprefix(ACTORS) for actor in found):
            prefix = name.rpartition("-")[0]
            group = self._groups.get(prefix) or WorkerGroup(prefix, 0, 0)
            place = self._places[name] = Place(name, group, self._clock())
            place.wanted = False
            try:
                place.actor = ray.get_actor(f"{ACTORS}{name}")
            except ValueError:  # it has just ended
                del self._places[name]

    def _visit(self, place: Place) -> str | None:
        """Look at a worker; returns its life if that has ended."""
        now = self._clock()
        if place.actor is None:
            if place.wanted and time.monotonic() >= place.retry_at:
                place.actor = self._place(place)
                place.show(WorkerState.STARTING, now)
        elif place.life is None:
            self._await_life(place, now)
        elif _ready(place.joined):
            if ray.get(place.joined):
                return self._end(place)
            place.join(now)
        elif now > place.answers_by:
            log.error("%s is frozen: it is ended, and starts again", place.name)
            ray.kill(place.actor, no_restart=False)
            place.show(WorkerState.STARTING, now, Reason.FROZEN, "it was frozen")
            return place.forget()
        elif place.ends_by is not None and now > place.ends_by + STORING_SECONDS:
            log.error("%s does not end; it is killed", place.name)
            return self._end(place)
        else:
            self._drain(place, now)
        return None

    def _await_life(self, place: Place, now: float) -> None:
        place.asked = place.asked or place.actor.life.remote()
        if _ready(place.asked):
            asked, place.asked = place.asked, None
            place.life = Life(*ray.get(asked))
            place.join(now)
            place.show(WorkerState.RUNNING, now)
            log.info("%s runs, life %s", place.name, place.life.token)
        elif _has_process(place.actor):
            why = "it loads its checkpoints, or Ray does not reach its host"
            place.show(WorkerState.STARTING, now, Reason.LOADING, why)
        elif not place.wanted:
            self._end(place)
        else:
            place.show(WorkerState.PENDING, now, *why_no_room(place.group, self._nodes))

    def _drain(self, place: Place, now: float) -> None:
        """Ask a worker to end that should not go on as it is."""
        assert place.life is not None
        if place.life.node in self._draining:
            seconds = self._draining[place.life.node]
            place.drain(seconds, now, Reason.NODE_DRAINED, "its node is drained")
        elif not place.wanted:
            why = "fewer workers are wanted"
            place.drain(SURPLUS_SECONDS, now, Reason.FEWER_WANTED, why)
        elif place.life.fingerprint != self._fingerprint(place.group) and self._may_replace(place):
            why = "its settings have changed"
            place.drain(SURPLUS_SECONDS, now, Reason.SETTINGS_CHANGED, why)

    def _may_replace(self, place: Place) -> bool:
        """One at a time; not while another one cannot start, perhaps for the same reason."""
        now = self._clock()
        group = [other for other in self._places.values() if other.group is place.group]
        shown = [other.shown(now) for other in group if other.wanted and other is not place]
        return all(
            other.state is WorkerState.RUNNING
            or (other.state is WorkerState.PENDING and other.seconds > PENDING_SECONDS)
            for other in shown
        )

    def _end(self, place: Place) -> str | None:
        """Remove an actor; what it still holds goes back when its life is known to have ended."""
        ray.kill(place.actor)
        place.show(WorkerState.WANTED if place.wanted else WorkerState.GONE, self._clock())
        return place.leave(retry_at=time.monotonic())

    def _lose(self, place: Place, cause: str) -> str | None:
        if place.wanted:
            log.error("%s cannot run: %s", place.name, cause)
            self._report(place.name, cause)
            place.show(WorkerState.WANTED, self._clock(), Reason.CANNOT_RUN, cause)
        return place.leave(retry_at=time.monotonic() + RETRY_SECONDS)

    def _fingerprint(self, group: WorkerGroup) -> str:
        """Of what decides how a worker works: its version and its own settings."""
        told = {**self._environment, **group.environment}
        own = {name: value for name, value in told.items() if name not in self._passing}
        text = json.dumps([farm.__version__, own], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _place(self, place: Place) -> Any:
        group = place.group
        return (
            ray.remote(self._actor)
            .options(
                name=f"{ACTORS}{place.name}",
                lifetime="detached",
                get_if_exists=True,
                max_restarts=-1,
                max_task_retries=0,
                max_concurrency=ACTOR_THREADS,
                num_gpus=group.gpus,
                num_cpus=group.cpus,
            )
            .remote(
                place.name, {**self._environment, **group.environment}, self._fingerprint(group)
            )
        )


def _nodes() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return found


def _draining_nodes() -> Iterator[tuple[str, float]]:
    """Nodes that Ray was told to drain, each with the seconds that its workers have left."""
    for node, deadline_ms in ray_state.get_draining_nodes().items():
        left = deadline_ms / 1000 - time.time() - MARGIN_SECONDS
        yield node, max(left, 0.0) if deadline_ms else UNSET_SECONDS


def _has_process(actor: Any) -> bool:
    """Whether the cluster has found a node for an actor and runs its constructor there."""
    return bool(_known(actor).get("Pid"))


def _is_dead(actor: Any) -> bool:
    return bool(_known(actor).get("State", "DEAD") == "DEAD")


def _known(actor: Any) -> dict[str, Any]:
    """What the cluster knows of an actor; nothing of one that ended long ago."""
    known: dict[str, Any] = ray_state.actor_table(actor._actor_id.hex())
    return known


def _ready(reference: Any) -> bool:
    return bool(ray.wait([reference], timeout=0)[0])


def _cause(error: BaseException) -> str:
    """The last line of Ray's report: the worker's own message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
