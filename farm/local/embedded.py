"""A whole farm on one machine: which processes it is made of and how each is started."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from farm.addresses import check_redis_url
from farm.checkpoints.inspect import built_in, inspect_checkpoint
from farm.errors import InvalidInput
from farm.local.supervisor import Service
from farm.local.valkey import ServerProcess
from farm.machine import cores, count_gpus, worker_threads
from farm.store import open_store

RAY_SECONDS = 120.0
WORKER_SECONDS = 300.0
MAX_SOCKET_PATH = 100  # bytes; the kernel takes 107
OBJECT_STORE_BYTES = 80 * 2**20  # Ray's least; pictures never travel through it


@dataclass(frozen=True)
class Plan:
    """What ``farm up`` was asked for; empty addresses mean that the part is embedded."""

    data: Path
    port: int
    workers: int
    checkpoints: tuple[str, ...]
    store: str = ""
    redis_url: str = ""
    ray_address: str = ""
    single_writer: bool = False
    gpus: int = field(default_factory=count_gpus)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def complete(self) -> "Plan":
        """The plan with the machine's defaults filled in and its checkpoints looked at."""
        if self.redis_url:
            check_redis_url(self.redis_url)
        if self.store:
            open_store(self.store)  # a wrong address is refused before anything starts
        workers = self.workers or max(self.gpus, 1)
        if self.single_writer and workers > 1:
            raise InvalidInput(
                f"{workers} workers would write to the store",
                field="--single-writer",
                hint="add --workers 1",
            )
        names = tuple(
            str(Path(name).absolute()) if Path(name).exists() else name
            for name in self.checkpoints or default_checkpoints(self.data)
        )
        for name in names:
            inspect_checkpoint(name)
        store = self.store
        if store and "://" not in store:
            store = str(Path(store).absolute())
        self._check_reach(store)
        return replace(self, checkpoints=names, store=store, workers=workers)

    def _check_reach(self, store: str) -> None:
        """Workers on other machines need a server and a store that they can reach."""
        host = self.ray_address.removeprefix("ray://").rsplit(":", 1)[0]
        if host in ("", "127.0.0.1", "localhost"):
            return
        if not self.redis_url or self.redis_url.startswith("unix:"):
            raise InvalidInput(
                f"workers on {host} cannot reach a server inside this machine",
                field="REDIS_URL",
                hint="name one that they can",
            )
        if not store.startswith("s3:"):
            raise InvalidInput(
                f"workers on {host} cannot write to a folder of this machine",
                field="FARM_STORE",
                hint="s3://bucket/prefix",
            )


class Embedded:
    """The services of a plan, in the order in which they start.

    Everything listens on loopback or on a unix socket below the data directory.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._run = plan.data / "run"
        self._base = self._short_path()
        # Its log goes where the supervisor reads the last words of those who ended.
        self._valkey = ServerProcess(self._base / "valkey", options=("--logfile", ""))
        self.redis_url = plan.redis_url or self._valkey.url
        self._ray_port = free_port()
        self.ray_address = plan.ray_address or f"127.0.0.1:{self._ray_port}"
        self.dashboard = "" if plan.ray_address else f"http://127.0.0.1:{free_port(8265)}"

    def services(self) -> Iterator[Service]:
        if not self.plan.redis_url:
            self._valkey.data.mkdir(parents=True, exist_ok=True, mode=0o700)
            yield Service("valkey", self._valkey.arguments(), ready=lambda: serves(self.redis_url))
        if not self.plan.ray_address:
            yield self._ray()
        yield Service(
            "gateway",
            [sys.executable, "-P", "-m", "farm.gateway"],
            ready=lambda: answers(f"{self.plan.url}/healthz"),
            environment=self.environment,
        )
        yield Service(
            "scheduler",
            [sys.executable, "-P", "-m", "farm.cli", "scheduler"],
            ready=lambda: answers(f"{self.plan.url}/readyz"),
            environment=self.environment,
            seconds=WORKER_SECONDS,
        )

    @property
    def environment(self) -> dict[str, str]:
        plan = self.plan
        return {
            "FARM_DATA": str(plan.data),
            "REDIS_URL": self.redis_url,
            "FARM_STORE": plan.store or str(plan.data / "store"),
            "FARM_SINGLE_WRITER": "1" if plan.single_writer else "0",
            "FARM_HOST": "127.0.0.1",
            "FARM_PORT": str(plan.port),
            "FARM_OPEN": "0" if os.environ.get("FARM_KEYS") else "1",
            "FARM_CHECKPOINTS": ",".join(plan.checkpoints),
            "FARM_WORKERS": str(plan.workers),
            "FARM_WORKER_GPUS": "1" if plan.gpus else "0",
            "FARM_WORKER_CPUS": "0" if plan.gpus else "1",
            "FARM_THREADS": str(worker_threads(plan.workers)),
            "FARM_RUN_DIR": str(self._run),
            "FARM_END_WORKERS": "1",
            "RAY_ADDRESS": self.ray_address,
            **({} if plan.ray_address else self._ray_environment()),
        }

    def _ray_environment(self) -> dict[str, str]:
        return {
            # Ray binds every interface unless it believes in a foreign operating system.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "PYTHONSAFEPATH": "1",  # a file beside the user must not stand in for a library
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token()),
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # a render farm's workers are what the machine is for
        }

    def _ray(self) -> Service:
        dashboard_port = int(self.dashboard.rsplit(":", 1)[1])
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block",
            "--disable-usage-stats",
            "--node-ip-address=127.0.0.1",
            f"--port={self._ray_port}",
            f"--ray-client-server-port={free_port()}",
            "--include-dashboard=true",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard_port}",
            f"--dashboard-agent-listen-port={free_port()}",
            f"--num-cpus={max(cores(), self.plan.workers)}",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--temp-dir={self._base / 'run' / 'ray'}",
        ]  # fmt: skip
        return Service(
            "ray",
            command,
            ready=lambda: listens(self._ray_port) and listens(dashboard_port),
            environment=self.environment,
            seconds=RAY_SECONDS,
        )

    def _token(self) -> Path:
        path = self._run / "ray-token"
        if not path.exists():
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
                out.write(secrets.token_hex(32))
        return path

    def _short_path(self) -> Path:
        """The data directory, or a short link to it where sockets' paths would be too long."""
        longest = "run/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.0"
        if len(os.fsencode(self.plan.data / longest)) <= MAX_SOCKET_PATH:
            return self.plan.data
        link = Path(tempfile.mkdtemp(prefix="farm-")) / "data"
        link.symlink_to(self.plan.data, target_is_directory=True)
        return link

    def clean(self) -> None:
        """Remove what only a running farm needs."""
        shutil.rmtree(self._run / "ray", ignore_errors=True)
        if self._base != self.plan.data:
            shutil.rmtree(self._base.parent, ignore_errors=True)


def default_checkpoints(data: Path) -> tuple[str, ...]:
    """Those that came with the workers; where none did, one with random weights, made once."""
    if shipped := tuple(built_in()):
        return shipped
    tiny = data / "checkpoints" / "tiny"
    if not tiny.exists():
        made = data / "checkpoints" / "part" / tiny.name  # its name goes into the checkpoint
        shutil.rmtree(made, ignore_errors=True)
        command = [sys.executable, "-P", "-m", "farm.cli", "checkpoint", "make-tiny", str(made)]
        subprocess.run(command, check=True, capture_output=True)
        made.rename(tiny)
    return (str(tiny),)


def check_port(port: int) -> None:
    """Raises ``InvalidInput`` where something else listens on a port that a user asked for."""
    if listens(port):
        raise InvalidInput(
            f"something already listens on 127.0.0.1:{port}",
            field="--port",
            hint="give another --port, or end the other program (a farm: farm down)",
        )


def free_port(preferred: int = 0) -> int:
    """A loopback port that nobody listens on, the preferred one if it is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", preferred))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serves(redis_url: str) -> bool:
    """Whether a Redis server answers, now and without patience."""
    check_redis_url(redis_url)
    with contextlib.suppress(redis.RedisError):
        client = redis.Redis.from_url(redis_url, socket_timeout=1, retry=Retry(NoBackoff(), 0))
        return bool(client.ping())
    return False


def listens(port: int) -> bool:
    return reachable(f"127.0.0.1:{port}")


def reachable(address: str) -> bool:
    """Whether something takes connections at ``host:port``."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=0.5).close()
    except (OSError, ValueError):
        return False
    return True


def answers(url: str) -> bool:
    """Whether a GET gives 200; any other answer, and none, is no."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False
