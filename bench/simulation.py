"""A small farm, measured and simulated: how far is ``farm simulate`` from what happens?

    python bench/simulation.py [--workers 4] [--pictures 2400] [--json FILE]

The farm is real but for its engines, which wait (``stub_worker.py``): Valkey, gateway, scheduler,
worker processes with their publishers, a local store. A data set and one person who asks
again four seconds after each picture share it.
The same farm and the same work are simulated
then, with the time that a step took.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stub_worker import MEASURED

from farm.addresses import reachable
from farm.local.ports import free_port
from farm.local.valkey import ServerProcess
from farm.queue import connect
from farm.simulation.fleet import Fleet
from farm.simulation.report import percentiles
from farm.simulation.service import Service
from farm.simulation.simulation import Plan, Simulation
from farm.simulation.workload import Workload, checkpoint_of
from farm.spec import Lane, Mode
from farm_client import Farm

ROWS, STEP_SECONDS, STEPS = 16, 0.1, 12
SHARD = 50  # pictures
SIZE = "64x64"
PERSON_SECONDS = 4.0
FIRST = 3  # pictures for each worker, before anything is measured
FARM = [sys.executable, "-m", "farm.cli"]
STUB = [sys.executable, str(Path(__file__).with_name("stub_worker.py"))]


@contextlib.contextmanager
def running_farm(folder: Path, workers: int) -> Iterator[tuple[str, str]]:
    """A farm of separate processes; its address and that of its Valkey server."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ServerProcess(folder / "valkey").serving())
        environment = {
            **os.environ,
            "REDIS_URL": server.url,
            "FARM_DATA": str(folder),
            "FARM_CHECKPOINTS": "shapes-64",
            "FARM_PORT": str(port),
            "FARM_OPEN": "1",
        }
        commands = [[sys.executable, "-m", "farm.gateway"], [*FARM, "scheduler"]]
        for number in range(workers):
            commands.append([*STUB, f"stub-{number}", str(ROWS), str(STEP_SECONDS)])
        for number, command in enumerate(commands):
            log = stack.enter_context((folder / f"{number}.log").open("w"))
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            stack.callback(process.wait, 30)
            stack.callback(process.terminate)
        queue = connect(server.url)
        while not reachable(f"127.0.0.1:{port}") or queue.zcard("{farm}:sessions") < workers:
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", server.url


def through_farm(address: str, workers: int, pictures: int) -> tuple[float, list[float]]:
    """Seconds for a data set, and those that each urgent picture took meanwhile."""
    waits: list[float] = []
    over = threading.Event()

    def person() -> None:
        with Farm(address) as farm:
            while not over.wait(PERSON_SECONDS):
                began = time.monotonic()
                farm.submit("urgent", num_inference_steps=STEPS, priority="urgent").wait()
                waits.append(time.monotonic() - began)

    thread = threading.Thread(target=person)
    requests = [
        {"prompt": f"picture {number}", "num_inference_steps": STEPS} for number in range(pictures)
    ]
    with Farm(address) as farm:
        # Publishers start with a worker's first picture, which takes long on a busy machine.
        first = [
            farm.submit("first", num_inference_steps=1, priority="urgent")
            for _ in range(FIRST * workers)
        ]
        for job in first:
            job.wait()
        thread.start()
        began = time.monotonic()
        farm.submit_many(requests, sink="webdataset", shard_size=SHARD, priority="bulk").wait()
        seconds = time.monotonic() - began
    over.set()
    thread.join()
    return seconds, waits


def measure(workers: int, pictures: int) -> dict[str, Any]:
    """The real farm; how long a step of its engines took is measured as well."""
    with tempfile.TemporaryDirectory(prefix="farm-sim-") as name:
        folder = Path(name)
        with running_farm(folder, workers) as (address, _):
            seconds, waits = through_farm(address, workers, pictures)
        steps = [
            float(line.removeprefix(MEASURED))
            for log in folder.glob("*.log")
            for line in log.read_text().splitlines()
            if line.startswith(MEASURED)
        ]
    return {
        "seconds": round(seconds, 2),
        "pictures_per_second": round(pictures / seconds, 2),
        "urgent_stored_seconds": percentiles(waits),
        "step_seconds": round(statistics.mean(steps), 5),
    }


def simulate(workers: int, pictures: int, step_seconds: float) -> dict[str, Any]:
    bulk_rows = ROWS - ROWS // 8  # the others are kept free for urgent pictures
    service = Service(
        row_step=step_seconds / bulk_rows,
        picture=0,
        encode=0,
        urgent_step=step_seconds,
        urgent_picture=0,
        alone_step=step_seconds,
    )
    lane = Lane(checkpoint_of(SIZE), Mode.TEXT2IMG, 64, 64)
    work = Workload(
        {lane: pictures},
        steps=STEPS,
        tenants=1,
        normal_share=0,
        shard_pictures=SHARD,
        urgent_per_second=1 / (PERSON_SECONDS + STEPS * step_seconds),
    )
    plan = Plan(Fleet(workers, 1, 0, 0), {SIZE: service}, work, rows=ROWS)
    with (
        tempfile.TemporaryDirectory(prefix="farm-sim-") as folder,
        ServerProcess(Path(folder), fsync="no").serving() as server,
    ):
        facts = Simulation(connect(server.url), plan).run().facts()
    kept = ("seconds", "pictures_per_second", "urgent_stored_seconds", "busy_share")
    return {name: facts[name] for name in kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--pictures", type=int, default=2400)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    measured = measure(options.workers, options.pictures)
    print("measured ", json.dumps(measured))
    simulated = simulate(options.workers, options.pictures, measured["step_seconds"])
    print("simulated", json.dumps(simulated))
    ratio = simulated["pictures_per_second"] / measured["pictures_per_second"]
    print(f"simulated over measured: {ratio:.3f}")
    if options.json:
        report = {
            "workers": options.workers,
            "pictures": options.pictures,
            "simulated": simulated,
            "measured": measured,
            "ratio": round(ratio, 3),
            "machine": f"{os.cpu_count()} shared cores, load {os.getloadavg()[0]:.1f}",
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
