"""A farm on four hosts, each of its parts started by the units of ``infra/systemd``.

The hosts are ``data`` (the queue's server and S3), ``head`` (Ray's head, gateway, scheduler), and
the workers' ``w1`` and ``w2``; see ``network.py``.
"""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from data_host import KEYS, S3_PORT, server_speaks_tls, start_queue, start_store
from network import Host, Network, wait_until
from watch import Watch

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "infra" / "systemd"
SECRETS = ROOT / "infra" / "make-secrets.sh"
STATE = "/var/lib/farm"  # the units' own folder, which each host has below its own
PROBE, SCAN = (Path(__file__).with_name(name) for name in ("probe.py", "scan.py"))
GATEWAY_PORT = 8400
HOSTS = {"data": "10.0.0.10", "head": "10.0.0.11", "w1": "10.0.0.21", "w2": "10.0.0.22"}
WORKER_HOSTS = ("w1", "w2")


class Listener(NamedTuple):
    """A port, and what it asks a stranger for; see ``scan.py``."""

    host: str
    port: int
    program: str
    asks_for: str

    @property
    def open(self) -> bool:
        return self.asks_for.startswith("OPEN")


class Unit(NamedTuple):
    """What a unit of ``infra/systemd`` says."""

    command: str
    environment: Mapping[str, str]

    def words(self, environment: Mapping[str, str]) -> list[str]:
        """The command line with its variables filled in."""
        filled = re.sub(r"\$\{(\w+)\}", lambda found: environment[found[1]], self.command)
        return shlex.split(filled.replace("/opt/farm/bin", str(Path(sys.executable).parent)))


def read_unit(name: str) -> Unit:
    text = (UNITS / f"{name}.service").read_text(encoding="utf-8")
    (command,) = re.findall(r"^ExecStart=(.*)$", text, flags=re.MULTILINE)
    told = re.findall(r"^Environment=(\w+)=(.*)$", text, flags=re.MULTILINE)
    return Unit(command, dict(told))


class Cluster:
    """The running farm. Its client is on the head.

    Args:
        folder: for everything that it writes.
        encrypted: TLS between Ray's processes and to the store too, which is then Ceph's; to the
            queue it is where the server knows it, to the gateway always.
        settings: instead of its own.
    """

    def __init__(
        self,
        folder: Path,
        network: Network,
        *,
        encrypted: bool = False,
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.folder, self.network, self.hosts = folder, network, network.hosts
        self.trace = folder / "trace.txt"
        self.encrypted, self._settings = encrypted, settings
        self.watch = Watch((), {})
        self._make_secrets()

    @property
    def endpoint(self) -> str:
        """The store's."""
        scheme = "https" if self.encrypted else "http"
        return f"{scheme}://{self.hosts['data'].address}:{S3_PORT}"

    def _make_secrets(self) -> None:
        addresses = [host.address for host in self.hosts.values()]
        subprocess.run(
            [str(SECRETS), str(self.folder / "secrets"), *addresses],
            env={
                **os.environ,
                **KEYS,
                "FARM_STORE": f"s3://farm/pictures?endpoint_url={self.endpoint}",
            },
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def secrets(self, host: Host) -> Path:
        """What is in ``/etc/farm`` there."""
        return self.folder / "secrets" / host.address

    def environment(self, host: Host, *, without_ray: bool = False) -> dict[str, str]:
        """What ``/etc/farm/farm.env`` says on a host, with the queue and Ray as they are here; with
        ``without-ray.env`` where that is for a host without Ray."""
        text = (self.secrets(host) / "farm.env").read_text(encoding="utf-8")
        if without_ray:
            text += (self.folder / "secrets" / "without-ray.env").read_text(encoding="utf-8")
        lines = text.replace("/etc/farm", str(self.secrets(host))).splitlines()
        settings = dict(line.split("=", 1) for line in lines)
        if not server_speaks_tls() and (url := settings.get("REDIS_URL")):
            settings["REDIS_URL"] = url.replace("rediss:", "redis:").partition("?")[0]
        if not self.encrypted:
            settings["RAY_USE_TLS"] = "0"
        return {
            **settings,
            "FARM_DATA": str(host.folder / "data"),
            "FARM_WORKERS": str(len(WORKER_HOSTS)),
            "FARM_WORKER_GPUS": "0",
            "FARM_WORKER_CPUS": str(os.cpu_count()),  # all of a host: one worker on each
            "FARM_THREADS": "1",
            "FARM_TRACE": str(self.trace),
            "RAY_worker_niceness": "0",
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(host.folder),
            "LANG": "C.UTF-8",
            "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", ""),
            "PYTHONUNBUFFERED": "1",
            **self._settings,
        }

    def keep_unit(self, host: Host, name: str) -> None:
        """Start a unit of ``infra/systemd`` there."""
        unit = read_unit(name)
        state = host.folder / "data"
        state.mkdir(exist_ok=True)
        environment = {**unit.environment, **self.environment(host)}
        here = {key: text.replace(STATE, str(state)) for key, text in environment.items()}
        host.keep(name, [word.replace(STATE, str(state)) for word in unit.words(here)], here)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Start everything, and wait until there is a worker on each of the workers' hosts."""
        self.start_queue()
        self.start_store()
        head = self.hosts["head"]
        self.keep_unit(head, "farm-ray-head")
        wait_until(lambda: head.listens(6379), "Ray's head")
        for name in WORKER_HOSTS:
            self.start_node(self.hosts[name])
        self.start_gateway()
        self.keep_unit(head, "farm-scheduler")
        with self.watching():
            wait_until(lambda: len(self.watch.lives) == len(WORKER_HOSTS), "the workers", 300)
            yield

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """``watch`` sees the workers meanwhile."""
        head = self.hosts["head"]
        self.watch = Watch(head.command([sys.executable, str(PROBE)]), self.environment(head))
        with self.watch.watching():
            yield

    def start_gateway(self) -> None:
        head = self.hosts["head"]
        self.keep_unit(head, "farm-gateway")
        wait_until(lambda: head.listens(GATEWAY_PORT), "the gateway")

    def start_node(self, host: Host) -> None:
        """A host joins Ray."""
        self.keep_unit(host, "farm-ray-node")

    def start_queue(self) -> None:
        data = self.hosts["data"]
        start_queue(data, self.secrets(data), self.environment(data))

    def start_store(self) -> None:
        data = self.hosts["data"]
        environment = {**self.environment(data), **KEYS}
        if self.encrypted:
            environment["AWS_CA_BUNDLE"] = str(self.secrets(data) / "ca.pem")
        start_store(data, self.secrets(data), environment, self.endpoint, ceph=self.encrypted)

    # What a person or a program there sees.

    def client(self, *words: str) -> str:
        """``farm …`` on the head; what it printed."""
        head = self.hosts["head"]
        environment = self.environment(head) | {
            "FARM_URL": f"https://{head.address}:{GATEWAY_PORT}",
            "FARM_API_KEY": (self.folder / "secrets" / "api-key").read_text().strip(),
            "SSL_CERT_FILE": str(self.folder / "secrets" / "ca.pem"),
        }
        return head.run(["farm", *words], environment)

    def scan(self) -> Iterator[Listener]:
        """What listens on each host and can be reached from another one, and what it asks for."""
        for host in self.hosts.values():
            stranger = self.hosts["w1" if host.name != "w1" else "w2"]
            programs = {port: name for at, port, name in host.ports() if not at.startswith("127.")}
            if not programs:
                continue
            command = [sys.executable, str(SCAN), host.address, *map(str, sorted(programs))]
            told = stranger.run(
                command,
                {
                    "PATH": "/usr/bin:/bin",
                    "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", ""),
                    "SSL_CERT_FILE": str(self.folder / "secrets" / "ca.pem"),
                },
            )
            for line in told.splitlines():
                port, answer = json.loads(line)
                yield Listener(host.name, port, programs[port], answer)

    def rendered(self) -> int:
        """Rows that any engine has started so far."""
        return self.trace.read_bytes().count(b"\n") if self.trace.exists() else 0
