"""Pictures per second through a farm whose engine draws nothing, per sink and store.

    python bench/sink_rates.py [--pictures 2000] [--size 256] [--ceph] [--out FILE]

The time is from the submission to the end of the job; beside it the processor time that each
process takes for a picture, which says what bounds the rate: a process that takes all of a core.
"""

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from stub_farm import CHECKPOINT, StubFarm

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "store"))

from s3_servers import ceph

from farm_client import Farm

SINKS = ("images", "webdataset", "parquet", "tokens")
BUCKET = "sink-rates"


def rate(farm: StubFarm, client: Farm, sink: str, pictures: int, size: int) -> dict[str, Any]:
    """Of one job."""
    before, started = farm.used(), time.monotonic()
    renders = ({"prompt": f"picture {number} for {sink}"} for number in range(pictures))
    shape = {"height": size, "width": size, "checkpoint": CHECKPOINT}
    job = client.submit_many(renders, sink=sink, priority="bulk", seed=1, defaults=shape)
    status = job.wait()
    seconds = time.monotonic() - started
    if status.images.done != pictures:
        raise SystemExit(f"{sink}: {status.images.done} of {pictures} are done")
    used = {name: held - before.get(name, 0) for name, held in farm.used().items()}
    print(f"{farm.store}: {sink}: {pictures / seconds:.1f}/s", file=sys.stderr, flush=True)
    return {
        "pictures_per_second": round(pictures / seconds, 1),
        "cpu_ms_per_picture": {
            name: round(held / pictures * 1000, 2) for name, held in used.items() if held > 0.05
        },
    }


def measure(store: str, pictures: int, size: int) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory(prefix="farm-sinks-") as folder,
        StubFarm(Path(folder), store=store).serving() as farm,
        Farm(farm.url) as client,
    ):
        rate(farm, client, "images", 50, size)  # the first pictures wait for imports
        return {sink: rate(farm, client, sink, pictures, size) for sink in SINKS}


@contextlib.contextmanager
def bucket() -> Iterator[str]:
    """A store on Ceph's object gateway."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "testsecret"}
    with tempfile.TemporaryDirectory(prefix="farm-ceph-") as folder, ceph(Path(folder)) as address:
        client = boto3.client("s3", endpoint_url=address, region_name="us-east-1")
        client.create_bucket(Bucket=BUCKET)
        yield f"s3://{BUCKET}/farm?endpoint_url={address}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--ceph", action="store_true", help="on Ceph too, which must be installed")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    told: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "pictures": options.pictures,
        "size": options.size,
        "folder": measure("", options.pictures, options.size),
    }
    if options.ceph:
        with bucket() as store:
            told["ceph"] = measure(store, options.pictures, options.size)
    print(json.dumps(told, indent=1))
    if options.out:
        options.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
