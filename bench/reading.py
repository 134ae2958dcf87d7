"""How quickly a finished job is read: fetched, trained on, exported.

    python bench/reading.py [--tokens 50000] [--pictures 2000] [--size 256] [--ceph] [--out FILE]

A farm whose engine draws nothing makes a job of the sinks ``tokens`` and ``parquet``. Then its
pictures are read in every way, and first as if the farm told nothing of shards: each picture at its
own address.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from sink_rates import bucket
from stub_farm import CHECKPOINT, StubFarm

import farm_client
from farm.cli.app import run
from farm_client import Farm, Job
from farm_client.models import Page


def submit(client: Farm, sink: str, pictures: int, size: int) -> Job:
    renders = ({"prompt": f"picture {number}"} for number in range(pictures))
    shape = {"height": size, "width": size, "checkpoint": CHECKPOINT}
    job = client.submit_many(renders, sink=sink, priority="bulk", seed=1, defaults=shape)
    job.wait()
    return job


def one_by_one(job: Job, folder: Path) -> None:
    with mock.patch.object(Page, "shard_of", return_value=None):
        job.fetch(folder)


def export(job: Job, folder: Path) -> None:
    kind = "tokens" if job.status().sink == "tokens" else "parquet"  # type: ignore[attr-defined]
    with contextlib.redirect_stdout(sys.stderr):
        run(["export", job.id, "-o", str(folder), "--as", kind])


WAYS: dict[str, Callable[[Job, Path], object]] = {
    "fetch, each picture at its own address": one_by_one,
    "fetch": lambda job, folder: job.fetch(folder),
    "fetch --shards": lambda job, folder: job.fetch(folder, shards=True),
    "dataset": lambda job, _: sum(1 for _ in farm_client.dataset(job)),
    "export": export,
}


def measure(store: str, options: argparse.Namespace) -> dict[str, Any]:
    told: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="farm-reading-") as name,
        StubFarm(Path(name), store=store).serving() as farm,
        Farm(farm.url) as client,
        mock.patch.dict(os.environ, FARM_URL=farm.url),
    ):
        for sink, pictures in (("tokens", options.tokens), ("parquet", options.pictures)):
            job = submit(client, sink, pictures, options.size)
            for way, read in WAYS.items():
                folder = Path(name) / "read"
                before, cpu, started = farm.used(), time.process_time(), time.monotonic()
                read(job, folder)
                seconds, cpu = time.monotonic() - started, time.process_time() - cpu
                gateway = farm.used()["gateway"] - before["gateway"]
                shutil.rmtree(folder, ignore_errors=True)
                told.setdefault(sink, {})[way] = {
                    "pictures_per_second": round(pictures / seconds, 1),
                    "reader_cpu_us": round(cpu / pictures * 1e6),
                    "gateway_cpu_us": round(gateway / pictures * 1e6),
                }
                print(f"{farm.store}: {sink}, {way}: {pictures / seconds:,.0f}/s", file=sys.stderr)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--ceph", action="store_true", help="on Ceph too, which must be installed")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    told = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "pictures": {"tokens": options.tokens, "parquet": options.pictures},
        "size": options.size,
        "folder": measure("", options),
    }
    if options.ceph:
        with bucket() as store:
            told["ceph"] = measure(store, options)
    text = json.dumps(told, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
