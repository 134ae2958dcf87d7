"""The storm's client, a process that is killed as well: ``python submitter.py JOBS FILE``.

Each acknowledged job is a line ``number id`` in FILE; started again, it submits the others. An
answer that was lost is asked for again under the same idempotency key.
"""

import io
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from workload import planned_job

from farm_client import Farm

THREADS = 6


def acknowledged(file: Path) -> dict[int, str]:
    """What was acknowledged, by number; a line that a kill cut short is not."""
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    pairs = [line.split() for line in lines]
    return {int(pair[0]): pair[1] for pair in pairs if len(pair) == 2 and len(pair[1]) == 29}


def picture(mode: str) -> bytes:
    random = np.random.default_rng(7)
    shape = (64, 64, 3) if mode == "RGB" else (64, 64)
    pixels = random.integers(0, 256, shape, dtype=np.uint8)
    if mode == "L":
        pixels = np.where(np.arange(64) < 32, 255, 0)[None].repeat(64, 0).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels, mode).save(out, "PNG")
    return out.getvalue()


def main() -> None:
    jobs, file = int(sys.argv[1]), Path(sys.argv[2])
    known = acknowledged(file)
    left = iter([number for number in range(jobs) if number not in known])
    lock = threading.Lock()
    out = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(out, b"\n")  # what was cut short stays a line of its own

    def work() -> None:
        with Farm() as farm:
            assets = {
                "image": farm.upload(picture("RGB")).id,
                "mask_image": farm.upload(picture("L")).id,
            }
            while True:
                with lock:
                    number = next(left, None)
                if number is None:
                    return
                planned = planned_job(number, jobs)
                inputs = {name: assets[name] for name in planned.inputs}
                job = farm.submit(planned.prompts, **planned.parameters, **inputs)
                os.write(out, f"{number} {job.id}\n".encode())

    with ThreadPoolExecutor(THREADS) as pool:
        for ended in [pool.submit(work) for _ in range(THREADS)]:
            ended.result()


if __name__ == "__main__":
    main()
