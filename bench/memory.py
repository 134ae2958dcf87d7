"""Whether the engine's memory stays flat: 10,000 tiny pictures of mixed work, one after another.

    python bench/memory.py > result.json

Rows are admitted whenever there is room, so waiting, stepping and decoding go on at once all the
time. Every picture has a prompt of its own and the caches are small, so they are full and forget
the oldest nearly from the start; what grows after that is a leak.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import psutil

from farm.spec import CheckpointInfo, Mode, RenderRequest
from farm_workers.bench.workloads import ASSET, Item, drawn
from farm_workers.engine import Engine, amused
from farm_workers.testing.tiny import make_tiny

SIDES = (16, 24, 32)  # of the pictures, in pixels: every pair is a token grid of its own
WARM_UP = 2000  # pictures until allocator and caches have their size
EVERY = 1000
CACHE_BYTES = 1 << 22  # instead of 128 MiB, which so small pictures would take long to fill


def mixed(info: CheckpointInfo, count: int) -> Iterator[Item]:
    """The three modes, 1 to 4 steps, guidance on and off, both kinds of random numbers."""
    random, noise = Random(0), np.random.default_rng(0)
    for number in range(count):
        mode = list(Mode)[number % 3]
        height, width = random.choice(SIDES), random.choice(SIDES)
        request: dict[str, Any] = {
            "mode": mode,
            "prompt": f"a red bicycle, take {number}",
            "num_inference_steps": random.randint(2 if mode is Mode.IMG2IMG else 1, 4),
            "guidance_scale": random.choice([0.0, 4.0, 10.0]),
            "rng": random.choice(["farm-1", "torch"]),
            "seed": number,
        }
        image = mask = None
        if mode is Mode.TEXT2IMG:
            request |= {"height": height, "width": width}
        else:
            image = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
            strengths = [0.6, 0.9] if mode is Mode.IMG2IMG else [1.0]
            request |= {"image": ASSET, "strength": random.choice(strengths)}
        if mode is Mode.INPAINT:
            mask = np.zeros((height, width), dtype=np.uint8)
            mask[random.choice([0, 8]) :, : width // 2] = 255
            request["mask_image"] = ASSET
        spec = RenderRequest.parse(request).resolve(info, seed=0, picture=(height, width))
        yield Item(spec, image, mask)


def measure(engine: Engine, count: int) -> list[float]:
    """Resident MiB before the first picture and after every thousand."""
    process = psutil.Process()
    found = [process.memory_info().rss / 2**20]
    for number, _ in enumerate(drawn(engine, mixed(engine.checkpoint, count)), start=1):
        if number % EVERY == 0:
            found.append(process.memory_info().rss / 2**20)
            print(f"{number:6} pictures {found[-1]:8.1f} MiB", file=sys.stderr)
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pictures", type=int, default=10_000)
    count = options.parse_args().pictures
    amused.CACHE_BYTES["cpu"] = CACHE_BYTES
    with tempfile.TemporaryDirectory() as folder:
        make_tiny(Path(folder) / "tiny", size=SIDES[-1], num_hidden_layers=1)
        engine = Engine.load(Path(folder) / "tiny", threads=1)
    started = time.monotonic()
    resident = measure(engine, count)
    seconds = time.monotonic() - started
    steady = resident[WARM_UP // EVERY :]
    result = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, one torch thread, no GPU",
        "numerics": engine.numerics,
        "pictures": count,
        "seconds": round(seconds, 1),
        "cache_bytes": CACHE_BYTES,
        "resident_mib": {
            str(number * EVERY): round(size, 1) for number, size in enumerate(resident)
        },
        "growth_mib": round(steady[-1] - steady[0], 1),
        "growth_from_picture": WARM_UP,
    }
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
