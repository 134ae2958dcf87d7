"""What the farm costs: pictures per second through all of it, over those of one process.

    python bench/overhead.py [--pictures 400] [--rounds 3] [--checkpoint NAME] [--out FILE]

Both render the same requests with the same checkpoint, in turn, on a machine where the farm runs
all the time; loading the checkpoint is counted on neither side. The farm's time is from the call
that submits to the end of the job, so it has the gateway, the queue, the grants, the publisher and
the manifest in it.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from farm.local.ports import free_port
from farm_client import Farm

FARM = [sys.executable, "-m", "farm.cli"]


def requests(path: Path, count: int, first: int) -> Path:
    lines = (
        json.dumps({"prompt": f"a red circle, number {number}", "seed": number})
        for number in range(first, first + count)
    )
    path.write_text("\n".join(lines) + "\n")
    return path


def alone(path: Path, folder: Path, checkpoint: str) -> float:
    """Pictures per second of ``farm render``."""
    command = [*FARM, "render", str(path), "-o", str(folder), "--checkpoint", checkpoint, "--json"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return float(told["images"]["done"] / told["seconds"])


def through_farm(farm: Farm, path: Path) -> float:
    """Pictures per second from the submission to the end of the job."""
    started = time.monotonic()
    with path.open("rb") as lines:
        job = farm.submit_many(lines)
    for status in job.events():
        done = status.images.done
    return done / (time.monotonic() - started)


def measure(count: int, rounds: int, checkpoint: str) -> list[dict[str, float]]:
    figures = []
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="farm-overhead-") as folder:
        data = Path(folder)
        environment = {**os.environ, "FARM_DATA": str(data / "farm")}
        up = [*FARM, "up", "--port", str(port), "--checkpoint", checkpoint, "--detach"]
        subprocess.run(up, env=environment, check=True)
        try:
            with Farm(f"http://127.0.0.1:{port}") as farm:
                through_farm(farm, requests(data / "warm.jsonl", count // 4, first=10**6))
                for number in range(rounds):
                    path = requests(data / "renders.jsonl", count, first=number * count)
                    one = alone(path, data / f"out-{number}", checkpoint)
                    whole = through_farm(farm, path)
                    figures.append({"alone": one, "farm": whole, "ratio": whole / one})
                    print(f"alone {one:6.1f}/s   farm {whole:6.1f}/s   ratio {whole / one:.2f}")
        finally:
            subprocess.run([*FARM, "down"], env=environment, check=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkpoint", default="shapes-64")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    figures = measure(options.pictures, options.rounds, options.checkpoint)
    summary: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "checkpoint": Path(options.checkpoint).name,
        "pictures": options.pictures,
        "rounds": figures,
        "median": {
            name: statistics.median(round_[name] for round_ in figures)
            for name in ("alone", "farm", "ratio")
        },
    }
    print(json.dumps(summary["median"]))
    if options.out:
        options.out.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
