"""A million renders with an engine that draws nothing: what the farm itself needs for each.

    python bench/million.py [--renders 1000000] [--sink tokens] [--workers 1] [--out FILE]

`farm submit` of a file, then the job until it is done; what every process takes, in memory and in
processor time. Then the rival, ``bench/ray_rival.py``, on the same file and the same machine: Ray
Data with the same columns in Parquet files and none of the farm's promises, and once more with
prompt, seed and tokens alone. With ``--folder`` the figures of what is finished stay there, and the
same command goes on with the rest.
"""

import argparse
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
from stub_farm import CHECKPOINT, StubFarm

from farm_client import Farm

HERE = Path(__file__).parent
SIZE = 128  # pixels; 16 x 16 tokens, 512 bytes
ROWS = 4096  # that an engine holds; three times as many wait, so that no grant is waited for
POLL_SECONDS = 0.2
TELL_SECONDS = 10.0
PARTS = 4  # of the time, each with its own peaks of memory: flat memory has the same in each


# All of the checkpoint's own words: any other is noted with its picture.
SIZES = ("tiny", "little", "small", "medium", "large", "big", "huge")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan", "white", "black")
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring", "disc", "donut")
PROMPT = "a {} {} {} and a {} {} {} on a {} background"


def write_prompts(path: Path, count: int) -> None:
    """Up to 1,605,632 that differ."""
    words = itertools.product(SIZES, COLOURS, SHAPES, SIZES, COLOURS, SHAPES, COLOURS)
    with path.open("w") as out:
        for chosen in itertools.islice(words, count):
            out.write(json.dumps({"prompt": PROMPT.format(*chosen)}) + "\n")


class Measured:
    """A process that was run to its end, with everything that it started."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        started = time.monotonic()
        used: dict[int, float] = {}
        self.memory: list[int] = []  # bytes, its own, over the time
        process = psutil.Popen(command, env=dict(environment), stdout=subprocess.PIPE, text=True)
        while process.poll() is None:
            try:
                self.memory.append(process.memory_info().rss)
                for one in (process, *process.children(recursive=True)):
                    used[one.pid] = sum(one.cpu_times()[:2])
            except psutil.Error:
                continue
            time.sleep(POLL_SECONDS)
        self.output = str(process.communicate()[0]).strip()
        self.seconds = time.monotonic() - started
        self.cpu_seconds = sum(used.values())
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")


def peaks(memory: Sequence[int]) -> list[float]:
    """MB, the most in each part of the time."""
    size = max(len(memory) // PARTS, 1)
    parts = [memory[start : start + size] for start in range(0, size * PARTS, size)]
    return [round(max(part, default=0) / 1e6, 1) for part in parts]


class Progress:
    """Tells every ten seconds how far the job is."""

    def __init__(self, farm: StubFarm, count: int) -> None:
        self._farm, self._count = farm, count
        self._started = time.monotonic()
        self._ended = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def end(self) -> None:
        self._ended.set()

    def _run(self) -> None:
        with Farm(self._farm.url) as client:
            while not self._ended.wait(TELL_SECONDS):
                seconds = time.monotonic() - self._started
                for job in client.jobs():
                    done = job.images.done
                    rate = f"{done:,} of {self._count:,}, {done / seconds:,.0f}/s"
                    held = {name: values[-1] >> 20 for name, values in self._farm.memory.items()}
                    print(f"{seconds:.0f} s: {rate}, MiB {held}", file=sys.stderr, flush=True)


def through_farm(
    folder: Path, prompts: Path, count: int, sink: str, workers: int
) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
    folder.mkdir()
    with StubFarm(folder, workers, rows=ROWS).serving() as farm:
        command = [
            *(sys.executable, "-m", "farm.cli", "submit", str(prompts), "--sink", sink),
            *("--priority", "bulk", "--height", str(SIZE), "--width", str(SIZE)),
            *("--checkpoint", CHECKPOINT),
        ]
        before, started = farm.used(), time.monotonic()
        progress = Progress(farm, count)
        submit = Measured(command, {**os.environ, "FARM_URL": farm.url})
        print(f"submitted {count:,} in {submit.seconds:.1f} s", file=sys.stderr, flush=True)
        with Farm(farm.url) as client:
            status = client.job(submit.output).wait()
        whole = time.monotonic() - started
        progress.end()
        if status.images.done != count:
            raise SystemExit(f"{status.images.done:,} of {count:,} are done")
        used = {name: seconds - before.get(name, 0) for name, seconds in farm.used().items()}
        used["client"] = submit.cpu_seconds
        return {
            "submit_seconds": round(submit.seconds, 1),
            "seconds": round(whole, 1),
            "rows_per_second": round(count / whole, 1),
            "peak_mb_by_quarter": {
                "client": peaks(submit.memory),
                **{name: peaks(values) for name, values in farm.memory.items()},
            },
            "cpu_us_per_row": {
                name: round(seconds / count * 1e6, 1) for name, seconds in used.items()
            },
            "cpu_seconds": round(sum(used.values()), 1),
        }


def through_ray_data(folder: Path, prompts: Path, count: int, *form: str) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    rival = [sys.executable, str(HERE / "ray_rival.py"), str(prompts), str(folder), *form]
    run = Measured(rival, os.environ)
    told = json.loads(next(line for line in run.output.splitlines() if "start_seconds" in line))
    made = sum(pq.read_metadata(file).num_rows for file in folder.glob("*.parquet"))
    if made != count:
        raise SystemExit(f"the rival made {made:,} of {count:,}")
    return {
        "seconds": round(run.seconds, 1),
        "start_seconds": round(told["start_seconds"], 1),
        "rows_per_second": round(count / run.seconds, 1),
        "cpu_us_per_row": round(run.cpu_seconds / count * 1e6, 1),
        "cpu_seconds": round(run.cpu_seconds, 1),
    }


def kept(file: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures in the file; measured where it is not there yet."""
    if not file.exists():
        file.write_text(json.dumps(measure()))
    told: dict[str, Any] = json.loads(file.read_text())
    print(file.stem, json.dumps(told), file=sys.stderr, flush=True)
    return told


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    prompts, count = folder / "prompts.jsonl", options.renders
    write_prompts(prompts, count)
    farm, rival = folder / "farm", folder / "rival"
    figures: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "renders": count,
        "sink": options.sink,
        "workers": options.workers,
        "farm": kept(
            folder / "farm.json",
            lambda: through_farm(farm, prompts, count, options.sink, options.workers),
        ),
    }
    if not options.alone:
        figures["ray_data"] = kept(
            folder / "ray_data.json", lambda: through_ray_data(rival, prompts, count)
        )
        figures["ray_data_bare"] = kept(
            folder / "ray_data_bare.json", lambda: through_ray_data(rival, prompts, count, "bare")
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--renders", type=int, default=1_000_000)
    parser.add_argument("--sink", default="tokens")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--alone", action="store_true", help="without the rival")
    parser.add_argument("--folder", type=Path, help="kept; an interrupted run goes on from there")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        figures = measure(options.folder, options)
    else:
        with tempfile.TemporaryDirectory(prefix="farm-million-") as name:
            figures = measure(Path(name), options)
    print(json.dumps(figures, indent=1))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
