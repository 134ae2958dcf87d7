"""How long an urgent picture takes, from submit to stored, on an idle farm and on a full one.

python bench/interactive.py [--checkpoint shapes-64] [--pictures 15] [--rounds 3] [--json]

One farm as ``farm up`` makes it, with one worker. A round measures single urgent pictures while
nothing else is there, then while a bulk job keeps every slot of the engine taken.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from farm.local.ports import free_port
from farm_client import Farm

BULK_PICTURES = 20_000  # more than a round can render; the rest is cancelled
STEPS = 12
FULL_SECONDS = 5.0  # until a bulk job has taken every slot


def urgent(farm: Farm, pictures: int) -> list[float]:
    """Seconds from the call of submit until the picture's bytes could be read, for each."""
    seconds = []
    for number in range(pictures):
        began = time.perf_counter()
        job = farm.submit(
            f"a red circle, take {number}",
            seed=number,
            num_inference_steps=STEPS,
            priority="urgent",
        )
        assert next(job.images()).bytes()
        seconds.append(time.perf_counter() - began)
    return seconds


def measure(farm: Farm, pictures: int, rounds: int) -> dict[str, float]:
    urgent(farm, 3)
    idle, busy = [], []
    for _ in range(rounds):
        idle += urgent(farm, pictures)
        bulk = farm.submit_many(
            ({"prompt": f"bulk {n}", "num_inference_steps": STEPS} for n in range(BULK_PICTURES)),
            priority="bulk",
            seed=0,
        )
        while not bulk.status().images.finished:
            time.sleep(0.1)
        time.sleep(FULL_SECONDS)
        before = bulk.status().images.finished
        busy += urgent(farm, pictures)
        assert bulk.status().images.finished > before, "the bulk job stands still"
        bulk.cancel()
        time.sleep(2.0)
    return {
        "idle_seconds": round(statistics.median(idle), 3),
        "busy_seconds": round(statistics.median(busy), 3),
        "ratio": round(statistics.median(busy) / statistics.median(idle), 2),
        "pictures": len(idle),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--checkpoint", default="shapes-64")
    options.add_argument("--pictures", type=int, default=15)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="interactive-") as data:
        port = free_port()
        command = [sys.executable, "-m", "farm.cli"]
        environment = {**os.environ, "FARM_DATA": data}
        subprocess.run(
            [
                *(*command, "up", "--data", data, "--port", str(port), "--workers", "1"),
                *("--checkpoint", given.checkpoint, "--detach"),
            ],
            env=environment,
            check=True,
        )
        try:
            with Farm(f"http://127.0.0.1:{port}") as farm:
                result = measure(farm, given.pictures, given.rounds)
        finally:
            subprocess.run([*command, "down", "--data", data], env=environment, check=True)
    print(json.dumps(result) if given.json else result)


if __name__ == "__main__":
    main()
