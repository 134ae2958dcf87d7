"""What the queue and the store cost when they are elsewhere and encrypted.

    FARM_CLUSTER_SERVER=redis-server python bench/services.py [--rounds 3] [--out FILE]

Two farms render the same requests in turn, with engines that draw nothing and with shapes-64. One
is as ``farm up`` makes it: Valkey on a socket, a folder, HTTP. The other has a server over TCP with
TLS and the users of ``infra/valkey``, Ceph's object gateway over HTTPS (``tools/ceph.sh``), and a
gateway that speaks TLS and asks for a key. FARM_CLUSTER_SERVER names a server that knows TLS.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from overhead import requests, through_farm
from stub_farm import StubFarm

from farm.addresses import reachable
from farm.local.embedded import free_port
from farm_client import Farm

ROOT = Path(__file__).parents[1]
HERE = "127.0.0.1"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "testsecret"}  # of tools/ceph.sh
START_SECONDS = 120.0
ENGINES = {"nothing": "1", "shapes-64": "0"}  # what is drawn: FARM_STUB
BUILT_IN, ELSEWHERE = "built in", "elsewhere, over TLS"


@contextlib.contextmanager
def services(folder: Path) -> Iterator[Mapping[str, str]]:
    """A server and a store over TLS; yields the settings of a farm that uses them."""
    queue, s3 = free_port(), free_port()
    store = f"s3://farm/pictures?endpoint_url=https://{HERE}:{s3}"
    secrets = folder / "secrets"
    subprocess.run(
        [str(ROOT / "infra" / "make-secrets.sh"), str(secrets), HERE, HERE, HERE],
        env={**os.environ, **KEYS, "FARM_STORE": store},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    own = secrets / HERE
    (folder / "queue").mkdir()
    settings = (own / "valkey.conf").read_text().replace("/etc/farm", str(own))
    settings = settings.replace("/var/lib/farm/queue", str(folder / "queue"))
    (own / "valkey.conf").write_text(settings.replace("6380", str(queue)))
    text = (own / "farm.env").read_text().replace("/etc/farm", str(own))
    told = dict(line.split("=", 1) for line in text.replace("6380", str(queue)).splitlines())
    ceph = [str(ROOT / "tools" / "ceph.sh"), str(s3), str(free_port()), str(folder / "ceph"), HERE,
            str(own / "host.pem"), str(own / "host.key")]  # fmt: skip
    server = [os.environ["FARM_CLUSTER_SERVER"], str(own / "valkey.conf"), "--bind", HERE]
    with contextlib.ExitStack() as stack:
        for command in (server, ceph):
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
        wait_for(f"{HERE}:{queue}")
        wait_for(f"{HERE}:{s3}")
        make_bucket(f"https://{HERE}:{s3}", own / "ca.pem")
        names = ("REDIS_URL", "FARM_STORE", *KEYS, "AWS_CA_BUNDLE", "FARM_TLS_CERT", "FARM_TLS_KEY",
                 "FARM_KEYS", "FARM_SECRET")  # fmt: skip
        os.environ["SSL_CERT_FILE"] = str(own / "ca.pem")
        key = (secrets / "api-key").read_text().strip()
        yield {**{name: told[name] for name in names}, "FARM_API_KEY": key}


def wait_for(address: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not reachable(address):
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing listens at {address}")
        time.sleep(0.2)


def make_bucket(url: str, trusted: Path) -> None:
    client = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", verify=str(trusted),
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    for attempt in range(10):
        try:
            client.create_bucket(Bucket="farm")
            return
        except (BotoCoreError, ClientError):
            if attempt == 9:
                raise
            time.sleep(1)


def measure(
    engine: str, pictures: int, rounds: int, remote: Mapping[str, str]
) -> dict[str, list[float]]:
    """Pictures per second of each farm, by round."""
    rates: dict[str, list[float]] = {BUILT_IN: [], ELSEWHERE: []}
    with (
        tempfile.TemporaryDirectory(prefix="farm-services-") as name,
        contextlib.ExitStack() as stack,
    ):
        clients = {}
        for kind, settings in ((BUILT_IN, {}), (ELSEWHERE, dict(remote))):
            folder = Path(name) / kind.replace(" ", "-")
            folder.mkdir()
            farm = StubFarm(folder, settings={**settings, "FARM_STUB": ENGINES[engine]})
            stack.enter_context(farm.serving())
            clients[kind] = stack.enter_context(
                Farm(farm.url, api_key=settings.get("FARM_API_KEY"))
            )
        for number in range(-1, rounds):  # the first one warms up
            for kind, client in clients.items():
                path = requests(Path(name) / "renders.jsonl", pictures, number * pictures + 10**6)
                rate = through_farm(client, path)
                print(f"{engine:<10} {kind:<20} {rate:7.1f}/s", flush=True)
                if number >= 0:
                    rates[kind].append(rate)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--pictures", type=int, default=60, help="of shapes-64; 20 times as many else"
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result: dict[str, object] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    with (
        tempfile.TemporaryDirectory(prefix="farm-elsewhere-") as name,
        services(Path(name)) as remote,
    ):
        for engine in ENGINES:
            pictures = options.pictures * (20 if engine == "nothing" else 1)
            rates = measure(engine, pictures, options.rounds, remote)
            ratios = [there / here for here, there in zip(*rates.values(), strict=True)]
            result[engine] = {
                "pictures": pictures,
                "rounds": rates,
                "median": {kind: statistics.median(these) for kind, these in rates.items()},
                "ratio": statistics.median(ratios),
            }
            print(f"{engine}: {statistics.median(ratios):.2f} of the speed", flush=True)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
