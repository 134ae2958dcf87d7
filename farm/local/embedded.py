"""A whole farm on one machine: which processes it is made of and how each is started."""

import contextlib
import fcntl
import json
import os
import random
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import IO, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from farm.addresses import check_redis_url, reachable
from farm.checkpoints.inspect import inspect_checkpoint
from farm.checkpoints.references import built_in
from farm.errors import InvalidCheckpoint, InvalidInput, Unavailable
from farm.local.load_check import LoadCheck
from farm.local.supervisor import Service
from farm.local.valkey import ServerProcess, advice
from farm.machine import cores, count_gpus, worker_threads
from farm.paths import SCHEDULER_ALIVE
from farm.queue import check_server, connect
from farm.store import open_store
from farm.store.probing import check_store
from farm.worker_group import grown, parse_groups

VALKEY_SECONDS = 600.0  # it reads a long append-only file
GATEWAY_SECONDS = 120.0  # with the check
RAY_SECONDS = 120.0
WORKER_SECONDS = 300.0
PATIENCE = 20  # looks at what may be busy for a while: a slow disk, a cluster without processors
RAY_FILE = "ray.json"  # where its parts answer, for farm doctor
WAITS = ("farm.errors.Unavailable", "farm.errors.StoreError")  # a worker may well run later
MAX_SOCKET_PATH = 100  # bytes; the kernel takes 107
_PLAIN = re.compile(r"[A-Za-z0-9/._-]+")
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
    groups: str = ""  # of workers, instead of a number: farm.worker_group
    min_workers: int | None = None
    max_workers: int | None = None
    least: int = 1  # workers that there always are
    gpus: int = field(default_factory=count_gpus)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def complete(self) -> "Plan":
        """The plan with the machine's defaults filled in, and everything it names looked at: what
        does not answer now is told before anything starts."""
        store = self.store
        if store and "://" not in store:
            store = str(Path(store).absolute())
        self._check_reach(store)
        if self.redis_url:
            check_server(connect(self.redis_url), allow_volatile=True)
        if store:
            check_store(open_store(store, attempts=2), single_writer=self.single_writer)
        names = tuple(
            str(Path(name).absolute()) if Path(name).exists() else name
            for name in self.checkpoints or default_checkpoints(self.data)
        )
        counted = self._counted(names)
        for name in names:
            if "," in name:
                raise InvalidCheckpoint(
                    f"{name} has a comma in its path, by which checkpoints are separated",
                    hint="rename the folder, or give a symbolic link to it",
                )
            inspect_checkpoint(name, self.data)
        return replace(self, checkpoints=names, store=store, **counted)

    def _counted(self, checkpoints: tuple[str, ...]) -> dict[str, Any]:
        """How many workers there may be, and what says so."""
        file = Path(self.groups)
        groups = str(file.absolute()) if self.groups and file.is_file() else self.groups
        text = groups or str(self.workers or max(self.gpus, 1))
        there = parse_groups(text, checkpoints, gpus=1 if self.gpus else 0, cpus=1)
        if not (self.min_workers is None and self.max_workers is None):
            there = tuple(grown(group, self.min_workers, self.max_workers) for group in there)
        workers = sum(group.most for group in there)
        if self.single_writer and workers > 1:
            raise InvalidInput(
                f"{workers} workers would write to the store",
                field="--single-writer",
                hint="add --workers 1",
            )
        least = sum(group.least for group in there)
        return {"workers": workers, "groups": text, "least": least}

    def _check_reach(self, store: str) -> None:
        """Workers on other machines need a server and a store that they can reach."""
        if self.ray_address and ":" not in self.ray_address.removeprefix("ray://"):
            raise InvalidInput(
                f"{self.ray_address!r} does not name a Ray cluster",
                field="RAY_ADDRESS",
                hint="write the host:port of its head, or unset it: farm up then starts a Ray of "
                "its own",
            )
        if self.ray_address and not reachable(self.ray_address.removeprefix("ray://")):
            raise InvalidInput(
                f"nothing listens at {self.ray_address}",
                field="RAY_ADDRESS",
                hint="start the cluster (ray start --head), or unset it: farm up then starts a Ray "
                "of its own",
            )
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
        self.dashboard = (
            "" if plan.ray_address else f"http://127.0.0.1:{self._same_port('dashboard', 8265)}"
        )
        self._loads = LoadCheck(plan.checkpoints, plan.data)
        self._ray_agent = f"http://127.0.0.1:{free_port()}"

    def services(self) -> Iterator[Service]:
        if not self.plan.redis_url:
            self._valkey.data.mkdir(parents=True, exist_ok=True, mode=0o700)
            yield Service(
                "valkey",
                self._valkey.arguments(),
                ready=lambda: serves(self.redis_url),
                seconds=VALKEY_SECONDS,
                advice=advice,
                healthy=lambda: replies(self.redis_url),
                patience=PATIENCE,
            )
        # Before Ray, which takes long and all cores: it refuses wrong settings, and meanwhile the
        # check of the checkpoints ends.
        yield Service(
            "gateway",
            [sys.executable, "-P", "-m", "farm.gateway"],
            ready=lambda: answers(f"{self.plan.url}/healthz") and self._loads.passed(),
            environment=self.environment,
            seconds=GATEWAY_SECONDS,
            healthy=lambda: answers(f"{self.plan.url}/healthz"),
        )
        if not self.plan.ray_address:
            yield self._ray()
        for told in self._run.glob("*.failed"):
            told.unlink()
        yield Service(
            "scheduler",
            [sys.executable, "-P", "-m", "farm.cli", "scheduler"],
            ready=self._workers_ready,
            environment=self.environment,
            seconds=WORKER_SECONDS,
            healthy=lambda: fresh(self._run / SCHEDULER_ALIVE),
            patience=PATIENCE,
        )

    def _ray_ready(self) -> bool:
        return listens(self._ray_port) and listens(self._dashboard_port)

    @property
    def _dashboard_port(self) -> int:
        return int(self.dashboard.rsplit(":", 1)[1])

    def _workers_ready(self) -> bool:
        """Raises ``Unavailable`` as soon as a worker has ended at its start, a checkpoint that does
        not load for example: it is placed again and again, and would end again."""
        for told in self._run.glob("*.failed"):
            cause = told.read_text("utf-8").strip()
            told.unlink()
            if cause and not cause.startswith(WAITS):
                raise Unavailable(
                    f"{told.stem} cannot run: {cause}",
                    hint="farm up --checkpoint names the checkpoints that it loads",
                )
        return answers(f"{self.plan.url}/readyz?workers={min(self.plan.least, 1)}")

    def _same_port(self, name: str, first: int) -> int:
        """A free port, the one that it was last time if possible, so that bookmarks stay good."""
        self.plan.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = self.plan.data / "ports.json"
        known = json.loads(kept.read_text()) if kept.exists() else {}
        port = free_port(known.get(name, first))
        kept.write_text(json.dumps({**known, name: port}) + "\n")
        return port

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
            "FARM_WORKERS": plan.groups or str(plan.workers),
            **({} if plan.min_workers is None else {"FARM_MIN_WORKERS": str(plan.min_workers)}),
            **({} if plan.max_workers is None else {"FARM_MAX_WORKERS": str(plan.max_workers)}),
            "FARM_WORKER_GPUS": "1" if plan.gpus else "0",
            "FARM_WORKER_CPUS": "0" if plan.gpus else "1",
            "FARM_THREADS": str(worker_threads(max(plan.workers, 1))),
            "FARM_RUN_DIR": str(self._run),
            "FARM_LOG_DIR": str(plan.data / "logs"),
            "FARM_PAGE": plan.url,
            "FARM_END_WORKERS": "1",
            "RAY_ADDRESS": self.ray_address,
            **direct(),
            **({} if plan.ray_address else self._ray_environment()),
        }

    def _ray_environment(self) -> dict[str, str]:
        return {
            # Ray binds every interface unless it takes the system for another than Linux.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "PYTHONSAFEPATH": "1",  # a file beside the user must not stand in for a library
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token()),
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR": str(self._run / "grafana"),
            "RAY_worker_niceness": "0",  # a render farm's workers are what the machine is for
        }

    def _ray(self) -> Service:
        health = {
            "gcs_server": f"{self.dashboard}/api/gcs_healthz",
            "raylet": f"{self._ray_agent}/api/local_raylet_healthz",
        }
        (self._run / RAY_FILE).write_text(json.dumps(health) + "\n")
        self._place_board()
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block",
            "--disable-usage-stats",
            "--node-ip-address=127.0.0.1",
            f"--port={self._ray_port}",
            f"--ray-client-server-port={free_port()}",
            "--include-dashboard=true",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self._dashboard_port}",
            f"--dashboard-agent-listen-port={self._ray_agent.rsplit(':', 1)[1]}",
            f"--num-cpus={max(cores(), self.plan.workers)}",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--temp-dir={self._base / 'run' / 'ray'}",
        ]  # fmt: skip
        return Service(
            "ray",
            command,
            ready=self._ray_ready,
            environment=self.environment,
            seconds=RAY_SECONDS,
            healthy=lambda: not silent_parts(health),
            patience=PATIENCE,
        )

    def _place_board(self) -> None:
        """Where Ray writes its own boards for Grafana. The folder is not of a session of Ray, so a
        restart of Ray leaves it."""
        folder = self._run / "grafana"
        folder.mkdir(exist_ok=True, mode=0o700)
        board = resources.files("farm.local") / "grafana" / "farm.json"
        (folder / "farm.json").write_bytes(board.read_bytes())

    def _token(self) -> Path:
        path = self._run / "ray-token"
        if not path.exists():
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
                out.write(secrets.token_hex(32))
        return path

    def _short_path(self) -> Path:
        """The data directory, or a plain link to it: where sockets' paths would be too long, or
        where characters mean something in an address (``#``, ``?``, ``%``) or to Ray."""
        longest = "run/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.0"
        fits = len(os.fsencode(self.plan.data / longest)) <= MAX_SOCKET_PATH
        if fits and _PLAIN.fullmatch(str(self.plan.data)):
            return self.plan.data
        link = Path(tempfile.mkdtemp(prefix="farm-", dir=short_temp())) / "data"
        link.symlink_to(self.plan.data, target_is_directory=True)
        return link

    def clean(self) -> None:
        """Remove what only a running farm needs."""
        self._loads.stop()
        shutil.rmtree(self._run / "ray", ignore_errors=True)
        if self._base != self.plan.data:
            shutil.rmtree(self._base.parent, ignore_errors=True)


def direct() -> dict[str, str]:
    """Settings by which no library asks a proxy for this machine's own addresses."""
    names = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    told = ",".join(filter(None, [names, "127.0.0.1", "localhost", "::1"]))
    return {"no_proxy": told, "NO_PROXY": told}


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


PORTS = (20_000, 32_000)  # below those of outgoing connections on Linux and macOS
_reserved: list[IO[bytes]] = []  # locks on ports, kept until this process ends


def free_port(preferred: int = 0) -> int:
    """A loopback port that no program listens on, the preferred one if it is free.

    It may be seconds until it is listened on. Farms that start at the same time would find the same
    port free, so it is locked for this process among all farms of this user; and it is not of the
    range from which the system gives outgoing connections theirs.
    """
    while True:
        port = preferred or random.randrange(*PORTS)
        preferred = 0
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            if _reserve(port):
                return port


def _reserve(port: int) -> bool:
    """Whether this process now holds the lock on a port, or no lock can be kept."""
    folder = Path(short_temp()) / f"farm-ports-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        file = (folder / str(port)).open("ab")
    except OSError:  # a full disk, or another user's folder; the port is free all the same
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return False
    _reserved.append(file)
    return True


def short_temp() -> str:
    """The folder for temporary files; the system's if ``TMPDIR`` is too long for sockets."""
    given = tempfile.gettempdir()
    return (
        given
        if len(os.fsencode(given)) <= len("/tmp") or not os.access("/tmp", os.W_OK)
        else "/tmp"
    )


def serves(redis_url: str) -> bool:
    """Whether a Redis server answers; asked once."""
    check_redis_url(redis_url)
    with contextlib.suppress(redis.RedisError):
        client = redis.Redis.from_url(redis_url, socket_timeout=1, retry=Retry(NoBackoff(), 0))
        return bool(client.ping())
    return False


def replies(redis_url: str) -> bool:
    """Whether something at the address speaks Redis, if only to say that it is busy."""
    with contextlib.suppress(redis.RedisError):
        client = redis.Redis.from_url(redis_url, socket_timeout=2, retry=Retry(NoBackoff(), 0))
        try:
            return bool(client.ping())
        except (redis.ResponseError, redis.BusyLoadingError, redis.AuthenticationError):
            return True
    return False


def silent_parts(health: Mapping[str, str]) -> list[str]:
    """Those of Ray's parts that do not answer at their addresses for health checks."""
    return [name for name, url in health.items() if not answers(url)]


def fresh(file: Path, seconds: float = 10.0) -> bool:
    """Whether a file was touched within so many seconds."""
    return file.exists() and time.time() - file.stat().st_mtime < seconds


def listens(port: int) -> bool:
    return reachable(f"127.0.0.1:{port}")


# Loopback is never behind a proxy, whatever http_proxy says.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def answers(url: str) -> bool:
    """Whether a GET gives 200."""
    try:
        with _DIRECT.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False
