"""A farm on four hosts, each of its parts started by the units of ``infra/systemd``.

The hosts are ``data`` (the queue's server and S3), ``head`` (Ray's head, gateway, scheduler), and
the workers' ``w1`` and ``w2``; see ``network.py``.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import trustme
from network import Host, Network, wait_until

from farm.local.valkey import find_server

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "infra" / "systemd"
PROBE = Path(__file__).with_name("probe.py")
SERVER = "FARM_CLUSTER_SERVER"  # names a Valkey or Redis server that knows TLS
S3_PORT, GATEWAY_PORT = 9000, 8400
WORKER_HOSTS = ("w1", "w2")


class Life(NamedTuple):
    """A worker's session."""

    session: str
    worker: str
    held: int  # tasks


def unit_command(name: str, environment: Mapping[str, str]) -> list[str]:
    """What a unit of ``infra/systemd`` runs, with its variables filled in."""
    text = (UNITS / f"{name}.service").read_text(encoding="utf-8")
    (line,) = re.findall(r"^ExecStart=(.*)$", text, flags=re.MULTILINE)
    filled = re.sub(r"\$\{(\w+)\}", lambda found: environment[found[1]], line)
    return shlex.split(filled.replace("/opt/farm/bin", str(Path(sys.executable).parent)))


def template() -> dict[str, str]:
    """The variables of ``infra/systemd/farm.env``; ``environment`` fills them in."""
    lines = (UNITS / "farm.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


class Cluster:
    """The running farm. Its client is on the head."""

    def __init__(
        self,
        folder: Path,
        network: Network,
        *,
        ray_tls: bool = False,
        settings: Mapping[str, str] = MappingProxyType({}),  # instead of those below
    ) -> None:
        self.folder, self.network, self.hosts = folder, network, network.hosts
        self.trace = folder / "trace.txt"
        self._password, self._key = secrets.token_hex(16), secrets.token_hex(16)
        self._server = os.environ.get(SERVER)
        self._ray_tls, self._settings = ray_tls, settings
        self._probe: subprocess.Popen[str] | None = None
        self._write_secrets()

    @property
    def tls(self) -> bool:
        """Whether the queue's server speaks TLS; that of the Python package does not."""
        return self._server is not None

    def _write_secrets(self) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.folder / "ca.pem"))
        for host in self.hosts.values():
            issued = authority.issue_cert(host.address, "127.0.0.1")
            issued.private_key_pem.write_to_path(str(self.folder / f"{host.name}.key"))
            for blob in issued.cert_chain_pems:
                blob.write_to_path(str(self.folder / f"{host.name}.pem"), append=True)
        (self.folder / "ray-token").write_text(secrets.token_hex(32))
        (self.folder / "ray-token").chmod(0o600)
        digest = hashlib.sha256(self._key.encode()).hexdigest()
        (self.folder / "keys.json").write_text(json.dumps({digest: {"tenant": "ann"}}))
        users = (ROOT / "infra" / "valkey" / "users.acl").read_text(encoding="utf-8")
        password = hashlib.sha256(self._password.encode()).hexdigest()
        (self.folder / "users.acl").write_text(users.replace("PASSWORD_SHA256", password))

    def environment(self, host: Host) -> dict[str, str]:
        """What ``/etc/farm/farm.env`` would say on a host."""
        data, head = self.hosts["data"].address, self.hosts["head"].address
        queue = f"{data}:6380/0?ssl_ca_certs={self.folder}/ca.pem" if self.tls else f"{data}:6380/0"
        settings = {
            **template(),
            "NODE_ADDRESS": host.address,
            "RAY_AUTH_TOKEN_PATH": f"{self.folder}/ray-token",
            "RAY_ADDRESS": f"{head}:6379",
            "REDIS_URL": f"redis{'s' if self.tls else ''}://farm:{self._password}@{queue}",
            "FARM_STORE": f"s3://farm/pictures?endpoint_url=http://{data}:{S3_PORT}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "testsecret",
            "FARM_WORKERS": str(len(WORKER_HOSTS)),
            "FARM_WORKER_GPUS": "0",
            "FARM_WORKER_CPUS": str(os.cpu_count()),  # all of a host: one worker on each
            "FARM_HOST": head,
            "FARM_KEYS": f"{self.folder}/keys.json",
            "FARM_SECRET": "0123456789abcdef" * 2,
            "FARM_TLS_CERT": f"{self.folder}/head.pem",
            "FARM_TLS_KEY": f"{self.folder}/head.key",
        }
        tls = {
            "RAY_USE_TLS": "1",
            "RAY_TLS_SERVER_CERT": f"{self.folder}/{host.name}.pem",
            "RAY_TLS_SERVER_KEY": f"{self.folder}/{host.name}.key",
            "RAY_TLS_CA_CERT": f"{self.folder}/ca.pem",
        }
        return {
            **settings,
            **(tls if self._ray_tls else {}),
            "FARM_DATA": str(host.folder / "data"),
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
        environment = self.environment(host)
        host.keep(name, unit_command(name, environment), environment)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Start everything, and wait until there is a worker on each of the workers' hosts."""
        self.start_server()
        self.start_store()
        head = self.hosts["head"]
        self.keep_unit(head, "farm-ray-head")
        wait_until(lambda: self.listens(head, 6379), "Ray's head")
        for name in WORKER_HOSTS:
            self.start_node(self.hosts[name])
        self.start_gateway()
        self.keep_unit(head, "farm-scheduler")
        with self.probing():
            wait_until(lambda: len(self.workers()) == len(WORKER_HOSTS), "the workers", 300)
            yield

    @contextlib.contextmanager
    def probing(self) -> Iterator[None]:
        """``workers`` can be asked meanwhile."""
        head = self.hosts["head"]
        with subprocess.Popen(
            head.command([sys.executable, str(PROBE)]),
            env=self.environment(head),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as self._probe:
            try:
                yield
            finally:
                self._probe.kill()

    def start_gateway(self) -> None:
        head = self.hosts["head"]
        self.keep_unit(head, "farm-gateway")
        wait_until(lambda: self.listens(head, GATEWAY_PORT), "the gateway")

    def start_node(self, host: Host) -> None:
        """A host joins Ray."""
        self.keep_unit(host, "farm-ray-node")

    def start_server(self) -> None:
        """The queue's server, on the host ``data``."""
        data = self.hosts["data"]
        folder = data.folder / "valkey"
        folder.mkdir()
        port = ["--port", "0", "--tls-port", "6380"] if self.tls else ["--port", "6380"]
        pem = str(self.folder / "data")
        tls = ["--tls-cert-file", f"{pem}.pem", "--tls-key-file", f"{pem}.key",
               "--tls-ca-cert-file", f"{self.folder}/ca.pem",
               "--tls-auth-clients", "no"]  # fmt: skip
        command = [self._server or str(find_server()), *port, *(tls if self.tls else ()),
                   "--bind", data.address, "--aclfile", f"{self.folder}/users.acl",
                   "--dir", str(folder), "--appendonly", "yes", "--appendfsync", "always",
                   "--save", "", "--maxmemory-policy", "noeviction"]  # fmt: skip
        data.keep("valkey", command, self.environment(data))
        wait_until(lambda: self.listens(data, 6380), "the queue's server")

    def start_store(self) -> None:
        """S3, on the same host."""
        data = self.hosts["data"]
        environment = self.environment(data) | {
            "BIND_HOST": data.address,
            "GATEWAY_PORT": str(S3_PORT),
            "SERVICES": "s3",
            "IOT_MTLS_ENABLED": "0",
            "TMPDIR": str(data.folder),
            "S3_PERSIST": "1",
            "S3_DATA_DIR": str(data.folder / "s3"),
        }
        data.keep("s3", [sys.executable, "-m", "ministack"], environment)
        wait_until(lambda: self.listens(data, S3_PORT), "the store")
        make = "import boto3, sys; boto3.client('s3', endpoint_url=sys.argv[1], "
        make += "region_name='us-east-1').create_bucket(Bucket='farm')"
        address = f"http://{data.address}:{S3_PORT}"
        data.run([sys.executable, "-c", make, address], environment)

    # What a person or a program there sees.

    def listens(self, host: Host, port: int) -> bool:
        return any(listening == port for _, listening, _ in host.ports())

    def client(self, *words: str) -> str:
        """``farm …`` on the head; what it printed."""
        head = self.hosts["head"]
        environment = self.environment(head) | {
            "FARM_URL": f"https://{head.address}:{GATEWAY_PORT}",
            "FARM_API_KEY": self._key,
            "SSL_CERT_FILE": f"{self.folder}/ca.pem",
        }
        return head.run(["farm", *words], environment)

    def workers(self) -> list[Life]:
        """The sessions; empty while the queue does not answer."""
        assert self._probe is not None
        assert self._probe.stdin is not None
        assert self._probe.stdout is not None
        told = json.loads(self._probe.stdout.readline())
        self._probe.stdin.write("\n")
        self._probe.stdin.flush()
        return [Life(*one) for one in told or ()]

    def rendered(self) -> int:
        """Rows that any engine has started so far."""
        return self.trace.read_bytes().count(b"\n") if self.trace.exists() else 0
