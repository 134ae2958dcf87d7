"""A whole farm on one machine: which processes it is made of and how each is started."""

import json
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from farm.errors import Unavailable
from farm.local.load_check import LoadCheck
from farm.local.plan import Plan
from farm.local.ports import free_port, kept_port
from farm.local.probes import answers, fresh, listens, replies, serves, silent_parts
from farm.local.supervisor import Service
from farm.local.valkey import ServerProcess, advice
from farm.machine import cores, worker_threads
from farm.paths import SCHEDULER_ALIVE, short_temp

VALKEY_SECONDS = 600.0  # it reads a long append-only file
GATEWAY_SECONDS = 120.0  # with the check
RAY_SECONDS = 120.0
WORKER_SECONDS = 300.0
PATIENCE = 20  # looks at what may be busy for a while: a slow disk, a cluster without processors
RAY_FILE = "ray.json"  # where its parts answer, for farm doctor
WAITS = ("farm.errors.Unavailable", "farm.errors.StoreError")  # a worker may well run later
MAX_SOCKET_PATH = 100  # bytes; the kernel takes 107
# Options take their defaults from these; of no_proxy the user's part is kept.
_OPTIONS = ("FARM_DATA", "FARM_STORE", "REDIS_URL", "RAY_ADDRESS", "no_proxy", "NO_PROXY")
_PLAIN = re.compile(r"[A-Za-z0-9/._-]+")
DASHBOARD_PORT = 8265  # Ray's own, if it is free
OBJECT_STORE_BYTES = 80 * 2**20  # Ray's least; pictures never travel through it


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
        self.dashboard = "" if plan.ray_address else f"http://127.0.0.1:{self._kept_port()}"
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

    def _kept_port(self) -> int:
        return kept_port(self.plan.data / "ports.json", DASHBOARD_PORT)

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

    @property
    def unheeded(self) -> list[str]:
        """Variables of the user's that do not count, since the parts get other values."""
        told = {name: value for name, value in self.environment.items() if name not in _OPTIONS}
        return [name for name, value in told.items() if os.environ.get(name, value) != value]

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
            "RAY_prestart_worker_first_driver": "0",  # else an idle process for each core
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
            logs=self._said_by_workers,
        )

    def _said_by_workers(self) -> Iterator[Path]:
        """What Ray keeps of stdout and stderr of its workers. It rotates its own logs; these only
        through a pipe, in which the last words of a worker that crashes are lost."""
        logs = self._run / "ray" / "session_latest" / "logs"
        for ending in ("out", "err"):
            yield from logs.glob(f"worker-*.{ending}")

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
