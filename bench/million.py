"""A million renders with an engine that draws nothing: what the farm itself needs for each.

    python bench/million.py [--renders 1000000] [--sink tokens] [--workers 1] [--alone] [--out FILE]

`farm submit` of a file, then the job until it is done; what every process takes, in memory and in
processor time. Then the rival, ``bench/ray_rival.py``, on the same file and the same machine: Ray
Data with the same tokens and Parquet files, and none of the farm's promises.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from stub_farm import CHECKPOINT, StubFarm

from farm_client import Farm

HERE = Path(__file__).parent
SIZE = 128  # pixels; 16 x 16 tokens, 512 bytes
POLL_SECONDS = 0.2


def write_prompts(path: Path, count: int) -> None:
    with path.open("w") as out:
        for number in range(count):
            out.write(json.dumps({"prompt": f"a picture with the number {number}"}) + "\n")


def measured(command: list[str], environment: dict[str, str]) -> tuple[str, float, int]:
    """Output, seconds, and the most resident memory in bytes of a process."""
    started, peak = time.monotonic(), 0
    process = psutil.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    while process.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
        except psutil.Error:
            break
        time.sleep(POLL_SECONDS)
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return str(out).strip(), time.monotonic() - started, peak


def through_farm(
    folder: Path, prompts: Path, count: int, sink: str, workers: int
) -> dict[str, Any]:
    with StubFarm(folder, workers).serving() as farm:
        submit = [
            *(sys.executable, "-m", "farm.cli", "submit", str(prompts), "--sink", sink),
            *("--priority", "bulk", "--height", str(SIZE), "--width", str(SIZE)),
            *("--checkpoint", CHECKPOINT),
        ]
        before, started = farm.used(), time.monotonic()
        job, seconds, peak = measured(submit, {**os.environ, "FARM_URL": farm.url})
        print(f"submitted {count:,} in {seconds:.1f} s", file=sys.stderr, flush=True)
        with Farm(farm.url) as client:
            status = client.job(job).wait()
        whole = time.monotonic() - started
        if status.images.done != count:
            raise SystemExit(f"{status.images.done:,} of {count:,} are done")
        return {
            "submit_seconds": round(seconds, 1),
            "seconds": round(whole, 1),
            "rows_per_second": round(count / whole, 1),
            "client_mb": round(peak / 1e6, 1),
            "peak_mb": {name: round(held / 1e6, 1) for name, held in farm.peaks.items()},
            "cpu_us_per_row": {
                name: round((used - before.get(name, 0)) / count * 1e6, 1)
                for name, used in farm.used().items()
            },
        }


def through_ray_data(folder: Path, prompts: Path, count: int) -> dict[str, Any]:
    rival = [sys.executable, str(HERE / "ray_rival.py"), str(prompts), str(folder)]
    out, seconds, _ = measured(rival, dict(os.environ))
    told = json.loads(out.splitlines()[-1])
    if told["rows"] != count:
        raise SystemExit(f"the rival made {told['rows']:,} of {count:,}")
    return {
        "seconds": round(seconds, 1),
        "start_seconds": round(told["start_seconds"], 1),
        "rows_per_second": round(count / seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--renders", type=int, default=1_000_000)
    parser.add_argument("--sink", default="tokens")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--alone", action="store_true", help="without the rival")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="farm-million-") as name:
        folder = Path(name)
        prompts = folder / "prompts.jsonl"
        write_prompts(prompts, options.renders)
        figures: dict[str, Any] = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "renders": options.renders,
            "sink": options.sink,
            "workers": options.workers,
            "farm": through_farm(folder, prompts, options.renders, options.sink, options.workers),
        }
        if not options.alone:
            figures["ray_data"] = through_ray_data(folder / "rival", prompts, options.renders)
    print(json.dumps(figures, indent=1))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
