"""Processes of a farm are killed at random while it makes data sets: ``--kills 20``, or more.

One job for each sink, again and again until there were enough kills: of each kind of process, and
of all of them at once. Afterwards each finished set is compared, byte for byte, with what the same
renders give when nothing is killed. Engines draw nothing, so that all the time is spent in what is
to be proved.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from environments import ProcessEnvironment
from processes import Member, send

from farm.errors import FarmError
from farm.formats.manifest import read_part
from farm.store import keys
from farm_client import Farm, Job

SINKS = ("images", "webdataset", "parquet", "tokens")
PROCESSES = ("worker", "publisher", "crash_reporter", "gateway", "scheduler")
VICTIMS = (*PROCESSES, "valkey", "everything")
SHARD = 60
PAUSE_SECONDS = 1.5  # at most, between two kills
END_SECONDS = 600


def submit(farm: Farm, sink: str, pictures: int) -> Job:
    renders = [{"prompt": f"picture {n}", "metadata": {"n": n}} for n in range(pictures)]
    return farm.submit_many(
        renders,
        sink=sink,
        shard_size=SHARD if sink != "images" else None,
        seed=7,
        defaults={"num_inference_steps": 2},
    )


def finished_set(store: Path, job: Job) -> dict[str, object]:
    """Every object with pictures by its key, and what the manifest says of them."""
    found: dict[str, object] = {}
    data = store / keys.all_data(job.id)
    for path in data.rglob("*"):
        if path.is_file():
            found[str(path.relative_to(data))] = path.read_bytes()
    parts = sorted((store / keys.prefix(job.id) / "manifest").rglob("*.parquet"))
    rows = [row for part in parts for row in read_part(part.read_bytes())]
    found["manifest"] = sorted(
        row._replace(job="", file=(row.file or "").replace(keys.prefix(job.id), "")) for row in rows
    )
    return found


def kill(environment: ProcessEnvironment, victim: str) -> int:
    """How many processes were killed."""
    names = {"valkey": (), "everything": PROCESSES}.get(victim, (victim,))
    pids = [pid for name in names for pid in environment.pids(name)]
    if victim not in ("everything", "valkey"):
        pids = random.sample(pids, min(len(pids), 1))
    killed = sum(send(pid, signal.SIGKILL) for pid in pids)
    if victim in ("everything", "valkey"):
        environment.kill_server()
        killed += 1
    return killed


def storm(folder: Path, kills: int, pictures: int, seed: int) -> dict[str, object]:
    random.seed(seed)
    os.environ["FARM_STUB"] = "1"
    environment = ProcessEnvironment(folder, faults="")
    killed: Counter[str] = Counter()
    jobs: list[tuple[str, Job]] = []
    differ: list[str] = []
    try:
        environment.start(Member("submitter", (sys.executable, "-c", "pass"), once=True))
        with Farm(environment.url) as farm:
            while len(jobs) < len(SINKS) or killed.total() < kills:
                now = [(sink, submit(farm, sink, pictures)) for sink in SINKS]
                jobs += now
                while killed.total() < kills and not _all_ended(now):
                    time.sleep(random.random() * PAUSE_SECONDS)
                    victim = random.choice(VICTIMS)
                    killed[victim] += bool(kill(environment, victim))
            for _, job in jobs:
                job.wait(END_SECONDS)
            calm = {sink: submit(farm, sink, pictures) for sink in SINKS}
            for job in calm.values():
                job.wait(END_SECONDS)
            undisturbed = {sink: finished_set(environment.store, job) for sink, job in calm.items()}
            for sink, job in jobs:
                if finished_set(environment.store, job) != undisturbed[sink]:
                    differ.append(f"{sink}: {job.id}")
                differ += [str(one) for one in job.verify().differences]
    finally:
        environment.close()
    objects = {sink: len(found) - 1 for sink, found in undisturbed.items()}
    return {
        "kills": dict(killed),
        "jobs": len(jobs),
        "pictures": pictures,
        "objects": objects,
        "differ": differ,
    }


def _all_ended(jobs: list[tuple[str, Job]]) -> bool:
    try:
        return all(job.status().ended for _, job in jobs)
    except FarmError:  # no gateway is back yet
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--pictures", type=int, default=600, help="of each job")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="farm-kills-") as folder:
        told = storm(Path(folder), options.kills, options.pictures, options.seed)
    print(json.dumps({"seed": options.seed, **told}, indent=1))
    sys.exit(1 if told["differ"] else 0)


if __name__ == "__main__":
    main()
