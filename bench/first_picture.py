"""How soon after its making the first picture of a bulk job is on screen.

python bench/first_picture.py [--rounds 5] [--out FILE]

A farm with one worker that draws with shapes-64. In each round a job of 2,000 pictures comes in. A
reader waits for its first picture with the SDK, and a browser, where there is one, shows the job's
page. A picture counts as made when its file is in the store's folder.
"""

import argparse
import contextlib
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stub_farm import StubFarm

from farm_client import Farm, Job

PICTURES = 2000
STEPS = 40  # so that the page is open before the first picture is made
SHOWN = "document.querySelector('#pictures img')?.naturalWidth > 0"
LONGEST_SECONDS = 120

Look = Callable[[Job], float]


def seen_by_sdk(job: Job) -> float:
    """When its bytes were there."""
    assert next(job.images()).bytes()
    return time.time()


@contextlib.contextmanager
def browser(url: str) -> Iterator[Look | None]:
    """What gives the time at which the page of a job showed a picture; None without a browser."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        yield None
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = opened.new_page()

        def look(job: Job) -> float:
            page.goto(f"{url}/jobs/{job.id}")
            deadline = time.monotonic() + LONGEST_SECONDS
            while not page.evaluate(SHOWN):  # the page's policy does not let it wait by itself
                assert time.monotonic() < deadline
                time.sleep(0.02)
            return time.time()

        yield look
        opened.close()


def one_round(farm: Farm, store: Path, look: Look | None) -> dict[str, float]:
    """Seconds after the making, by how it was looked at."""
    renders = (
        {"prompt": f"a red circle {n}", "num_inference_steps": STEPS} for n in range(PICTURES)
    )
    job = farm.submit_many(renders, priority="bulk", seed=0)
    with ThreadPoolExecutor(1) as pool:
        sdk = pool.submit(seen_by_sdk, job)
        seen = {"page": look(job)} if look else {}
        seen["sdk"] = sdk.result()
    made = min(path.stat().st_mtime for path in store.glob(f"*/{job.id}/data/0/*.png"))
    job.cancel()
    told = {name: round(when - made, 3) for name, when in seen.items()}
    print(told, flush=True)
    return told


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="first-picture-") as folder,
        StubFarm(Path(folder), settings={"FARM_STUB": "0"}).serving() as served,
        Farm(served.url) as farm,
        browser(served.url) as look,
    ):
        rounds = [one_round(farm, Path(served.store), look) for _ in range(given.rounds)]
    told = {
        name: {
            "median": statistics.median(one[name] for one in rounds),
            "longest": max(one[name] for one in rounds),
        }
        for name in rounds[0]
    }
    print(json.dumps(told))
    if given.out is not None:
        given.out.write_text(json.dumps({"rounds": rounds, "seconds": told}, indent=1) + "\n")


if __name__ == "__main__":
    main()
