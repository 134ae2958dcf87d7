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
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import trustme
from network import Host, Network, wait_until
from services import KEYS, QUEUE_PORT, S3_PORT, server_speaks_tls, start_queue, start_store
from watch import Watch

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "infra" / "systemd"
PROBE = Path(__file__).with_name("probe.py")
GATEWAY_PORT = 8400
WORKER_HOSTS = ("w1", "w2")


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
        self._password, self._key = secrets.token_hex(16), secrets.token_hex(16)
        self.encrypted, self._settings = encrypted, settings
        self.watch = Watch((), {})
        self._write_secrets()

    @property
    def _endpoint(self) -> str:
        """The store's."""
        scheme = "https" if self.encrypted else "http"
        return f"{scheme}://{self.hosts['data'].address}:{S3_PORT}"

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
        tls = server_speaks_tls()
        queue = f"{data}:{QUEUE_PORT}/0" + (f"?ssl_ca_certs={self.folder}/ca.pem" if tls else "")
        settings = {
            **template(),
            "NODE_ADDRESS": host.address,
            "RAY_AUTH_TOKEN_PATH": f"{self.folder}/ray-token",
            "RAY_ADDRESS": f"{head}:6379",
            "REDIS_URL": f"redis{'s' if tls else ''}://farm:{self._password}@{queue}",
            "FARM_STORE": f"s3://farm/pictures?endpoint_url={self._endpoint}",
            "AWS_CA_BUNDLE": f"{self.folder}/ca.pem",
            **KEYS,
            "FARM_WORKERS": str(len(WORKER_HOSTS)),
            "FARM_WORKER_GPUS": "0",
            "FARM_WORKER_CPUS": str(os.cpu_count()),  # all of a host: one worker on each
            "FARM_HOST": head,
            "FARM_KEYS": f"{self.folder}/keys.json",
            "FARM_SECRET": "0123456789abcdef" * 2,
            "FARM_TLS_CERT": f"{self.folder}/head.pem",
            "FARM_TLS_KEY": f"{self.folder}/head.key",
        }
        ray_tls = {
            "RAY_USE_TLS": "1",
            "RAY_TLS_SERVER_CERT": f"{self.folder}/{host.name}.pem",
            "RAY_TLS_SERVER_KEY": f"{self.folder}/{host.name}.key",
            "RAY_TLS_CA_CERT": f"{self.folder}/ca.pem",
        }
        return {
            **settings,
            **(ray_tls if self.encrypted else {}),
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
        start_queue(data, self.folder, self.environment(data))

    def start_store(self) -> None:
        data = self.hosts["data"]
        endpoint = self._endpoint
        start_store(data, self.folder, self.environment(data), endpoint, ceph=self.encrypted)

    # What a person or a program there sees.

    def client(self, *words: str) -> str:
        """``farm …`` on the head; what it printed."""
        head = self.hosts["head"]
        environment = self.environment(head) | {
            "FARM_URL": f"https://{head.address}:{GATEWAY_PORT}",
            "FARM_API_KEY": self._key,
            "SSL_CERT_FILE": f"{self.folder}/ca.pem",
        }
        return head.run(["farm", *words], environment)

    def rendered(self) -> int:
        """Rows that any engine has started so far."""
        return self.trace.read_bytes().count(b"\n") if self.trace.exists() else 0
