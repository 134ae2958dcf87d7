"""Workers on a Ray cluster: placed, found again, and certified dead."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import ray
import ray.job_config
from ray.exceptions import ActorUnavailableError, RayActorError

from farm.addresses import reachable
from farm.awake_clock import AwakeClock
from farm.errors import Unavailable

log = logging.getLogger(__name__)

JOIN_SECONDS = 5.0  # of one pending call; the next one follows at once
FROZEN_SECONDS = 20.0  # that its answer may be late; a process that is stopped never answers
NODES_SECONDS = 5.0  # between two looks at the cluster's nodes
RETRY_SECONDS = 5.0  # before a worker that could not start is placed again
ACTOR_THREADS = 8  # each may wait for a scheduler that is gone


class Placement:
    """Keeps ``count`` detached actors alive, named ``worker-0`` and so on.

    No work travels by Ray's calls: an actor leases for itself, so nothing is lost when the process
    with this object dies. Ray restarts an actor that crashes; ``deaths`` says so at once, from one
    pending ``join`` call per actor, where a lease would take seconds to run out.

    Args:
        actor: the workers' class; made with a name, the environment and its fingerprint.
        address: of the cluster's head, ``host:port``.
        farm: tells this farm's actors from those of others on the cluster.
        count: of workers.
        environment: settings of the workers, on top of their node's environment; an argument
            and not a runtime_env, which the dashboard would show with every secret in it.
        num_gpus, num_cpus: what one worker reserves.
        metadata: what Ray's dashboard shows of this driver.
        report: called for a worker that cannot run, with its name and the cause in one line.
    """

    def __init__(
        self,
        actor: type,
        address: str,
        farm: str,
        count: int,
        environment: Mapping[str, str],
        *,
        num_gpus: float,
        num_cpus: float,
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
        self._actor = actor
        self._report = report
        self._places = {f"worker-{number}": _Place() for number in range(count)}
        self._environment = dict(environment)
        self._fingerprint = hashlib.sha256(
            json.dumps(self._environment, sort_keys=True).encode()
        ).hexdigest()
        self._resources = {"num_gpus": num_gpus, "num_cpus": num_cpus}

    def deaths(self) -> list[str]:
        """Sessions whose process has died since the last call; never blocks."""
        dead = []
        self._clock()
        for worker, place in self._places.items():
            died = None
            try:
                died = self._visit(worker, place)
            except ActorUnavailableError:  # Ray is starting it again
                died = place.forget()
            except RayActorError as error:
                log.error("%s cannot run: %s", worker, _cause(error))
                self._report(worker, _cause(error))
                died = place.forget(retry_at=time.monotonic() + RETRY_SECONDS)
            if died is not None:
                log.warning("%s died; its session %s ends", worker, died)
                dead.append(died)
        return dead

    def check(self) -> None:
        """Raises ``Unavailable`` if this is not the cluster any more that it was connected to: it
        has died, or another one has taken its address. Where Ray finds that out in its own code,
        it ends the process."""
        if not reachable(self._address.removeprefix("ray://")):
            raise Unavailable(f"nothing listens at {self._address}")
        if time.monotonic() >= self._nodes_at:
            self._nodes_at = time.monotonic() + NODES_SECONDS
            alive = {node["NodeID"] for node in _nodes() if node["Alive"]}
            if self._node not in alive:
                raise Unavailable(f"the node {self._node[:8]} has left the cluster")

    def close(self) -> None:
        """End the workers; Ray does not start them again."""
        for place in self._places.values():
            if place.actor is not None:
                ray.kill(place.actor)

    def _visit(self, worker: str, place: "_Place") -> str | None:
        """Look at a worker; returns its session if that has ended."""
        if place.actor is None:
            if time.monotonic() >= place.retry_at:
                place.actor = self._place(worker)
        elif place.session is None:
            place.asked = place.asked or place.actor.life.remote()
            if _ready(place.asked):
                asked, place.asked = place.asked, None
                session, fingerprint = ray.get(asked)
                if fingerprint != self._fingerprint:
                    log.info("%s runs with other settings; it is placed again", worker)
                    ray.kill(place.actor)
                    place.forget(retry_at=time.monotonic() + RETRY_SECONDS)
                    return str(session)
                place.session = session
                place.join(self._clock())
                log.info("%s runs, session %s", worker, place.session)
        elif _ready(place.joined):
            ray.get(place.joined)
            place.join(self._clock())
        elif self._clock() > place.answers_by:
            log.error("%s is frozen: it is ended, and starts again", worker)
            ray.kill(place.actor, no_restart=False)
            return place.forget()
        return None

    def _place(self, worker: str) -> Any:
        return (
            ray.remote(self._actor)
            .options(
                name=f"farm-{worker}",
                lifetime="detached",
                get_if_exists=True,
                max_restarts=-1,
                max_task_retries=0,
                max_concurrency=ACTOR_THREADS,
                **self._resources,
            )
            .remote(worker, self._environment, self._fingerprint)
        )


class _Place:
    """What is known of one worker."""

    def __init__(self) -> None:
        self.actor: Any = None
        self.asked: Any = None  # pending call for its life
        self.session: str | None = None
        self.joined: Any = None  # pending call that fails when it dies
        self.answers_by = 0.0  # when that call is late, by the placement's clock
        self.retry_at = 0.0

    def join(self, now: float) -> None:
        self.joined = self.actor.join.remote(JOIN_SECONDS)
        self.answers_by = now + JOIN_SECONDS + FROZEN_SECONDS

    def forget(self, retry_at: float | None = None) -> str | None:
        """Start over with a new life of the worker; returns the session that ended."""
        session, self.session, self.asked, self.joined = self.session, None, None, None
        if retry_at is not None:
            self.actor, self.retry_at = None, retry_at
        return session


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What of this process's environment a worker on another node needs as well."""
    prefixes = ("FARM_", "AWS_", "OTEL_", "REDIS_URL")
    return {name: value for name, value in environment.items() if name.startswith(prefixes)}


def _nodes() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return found


def _ready(reference: Any) -> bool:
    return bool(ray.wait([reference], timeout=0)[0])


def _cause(error: BaseException) -> str:
    """The last line of Ray's report: the worker's own message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
