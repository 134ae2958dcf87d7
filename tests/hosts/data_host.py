"""The queue's server and the store on the host ``data``: what a farm finds, and does not bring."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from network import Host, wait_until

from farm.local.valkey import find_server

ROOT = Path(__file__).parents[2]
CEPH = ROOT / "tools" / "ceph.sh"
SERVER = "FARM_CLUSTER_SERVER"  # names a Valkey or Redis server that knows TLS
QUEUE_PORT, S3_PORT, MONITOR_PORT = 6380, 9000, 6789
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "testsecret"}  # of tools/ceph.sh


def server_speaks_tls() -> bool:
    """That of the Python package does not."""
    return SERVER in os.environ


def ceph_is_installed() -> bool:
    return all(map(shutil.which, ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd")))


def start_queue(data: Host, secrets: Path, environment: Mapping[str, str]) -> None:
    """By ``infra/valkey/valkey.conf``, without TLS if the server does not know it."""
    home = data.folder / "valkey"
    home.mkdir()
    settings = (secrets / "valkey.conf").read_text(encoding="utf-8")
    settings = settings.replace("/etc/farm", str(secrets)).replace("/var/lib/farm/queue", str(home))
    if not server_speaks_tls():
        lines = [line for line in settings.splitlines() if not line.startswith(("port", "tls-"))]
        settings = "\n".join([*lines, f"port {QUEUE_PORT}"])
    file = data.folder / "valkey.conf"
    file.write_text(settings)
    program = os.environ.get(SERVER) or str(find_server())
    data.keep("valkey", [program, str(file), "--bind", data.address], environment)
    wait_until(lambda: data.listens(QUEUE_PORT), "the queue's server")


def start_store(
    data: Host, secrets: Path, environment: Mapping[str, str], endpoint: str, *, ceph: bool
) -> None:
    """S3 with an empty bucket: Ceph's object gateway with TLS, or a server in a Python process."""
    if ceph:
        command = [str(CEPH), str(S3_PORT), str(MONITOR_PORT), str(data.folder / "ceph"),
                   data.address, f"{secrets}/host.pem", f"{secrets}/host.key"]  # fmt: skip
    else:
        command = [sys.executable, "-m", "ministack"]
    own = {
        "BIND_HOST": data.address,
        "GATEWAY_PORT": str(S3_PORT),
        "SERVICES": "s3",
        "IOT_MTLS_ENABLED": "0",
        "TMPDIR": str(data.folder),
        "S3_PERSIST": "1",
        "S3_DATA_DIR": str(data.folder / "s3"),
    }
    data.keep("s3", command, {**environment, **own})
    wait_until(lambda: data.listens(S3_PORT), "the store")
    make = "import boto3, sys; boto3.client('s3', endpoint_url=sys.argv[1], "
    make += "region_name='us-east-1').create_bucket(Bucket='farm')"
    data.run([sys.executable, "-c", make, endpoint], environment)
