"""Whether the page slows down: over a small farm, and with 10,000 jobs and 100,000 pictures.

python bench/page.py [--jobs 10000] [--pictures 100000] [--json FILE]

The pictures are rows of a manifest without files; the page lists them as it does others.
"""

import argparse
import json
import secrets
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import uvicorn

from farm.checkpoints.inspect import inspect_checkpoint
from farm.formats.manifest import ManifestRow, write_part
from farm.gateway.app import create_app
from farm.gateway.server import server_config
from farm.job import JobOptions, Receipt, TaskDraft, job_id
from farm.local.valkey import ServerProcess
from farm.queue import JobHeader, Queue, connect
from farm.settings import GatewaySettings
from farm.spec import RenderRequest, RenderSpec
from farm.store import Store, keys, open_store

TASK_PICTURES = 1000
ROUNDS = 9
CHECKPOINT = "shapes-64"
TENANT = "local"


def header() -> JobHeader:
    return JobHeader(job_id(), TENANT, JobOptions(), secrets.token_hex(32))


def small_jobs(queue: Queue, spec: RenderSpec, count: int) -> None:
    for number in range(count):
        queue.submit(header(), [TaskDraft(0, spec.lane, 1 + number % 8, 12)])


def row(job: str, number: int, spec: RenderSpec) -> ManifestRow:
    name = f"jobs/{job}/images/{number:08}-00.png"
    return ManifestRow(
        job, 0, number, 0, name, "0" * 64, 9000, 64, 64, number, spec.sha256, spec.canonical(),
        None, None, "bench",
    )  # fmt: skip


def large_job(queue: Queue, store: Store, spec: RenderSpec, pictures: int) -> str:
    """A job of which every picture is done."""
    tasks = pictures // TASK_PICTURES
    drafts = [TaskDraft(at, spec.lane, TASK_PICTURES, 12 * TASK_PICTURES) for at in range(tasks)]
    job = queue.submit(header(), drafts).job
    session = secrets.token_hex(16)
    queue.register(session, "bench", [spec.checkpoint], {})
    while queue.status(job, TENANT).images.done < pictures:
        for lease in queue.lease(session, None, 10**6, 60_000):
            if lease.job == job and not lease.finalise:
                first = lease.number * TASK_PICTURES
                part = keys.part(job, 0, lease.number)
                rows = [row(job, first + at, spec) for at in range(TASK_PICTURES)]
                store.put(part, write_part(rows))
                receipt = Receipt(
                    done=TASK_PICTURES, failed=0, size=9000 * TASK_PICTURES, part=part,
                    part_sha256="0" * 64, numerics="bench",
                )  # fmt: skip
                queue.complete(session, lease, receipt)
    queue.end(session, "drain")
    return job


@contextmanager
def gateway(redis_url: str, data: Path) -> Iterator[str]:
    """An open gateway in a thread; its address."""
    settings = GatewaySettings.model_validate(
        {"data": data, "redis_url": redis_url, "port": 0, "open": True, "checkpoints": CHECKPOINT}
    )
    server = uvicorn.Server(server_config(create_app(settings), settings))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def medians(http: httpx2.Client, job: str) -> dict[str, float]:
    """Milliseconds of each part of the page."""
    after = http.get(f"/v1/jobs/{job}/images", params={"limit": 1}).json()["next"]
    parts = {
        "jobs": "/page", "newest pictures": "/page/pictures", "farm": "/page/farm",
        "tenants": "/page/tenants", "a job": f"/page/jobs/{job}",
        "its first pictures": f"/page/jobs/{job}/pictures",
        "its next pictures": f"/page/jobs/{job}/pictures?after={after}",
        "its failures": f"/page/jobs/{job}/failures",
    }  # fmt: skip
    found = {}
    for name, path in parts.items():
        times = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            http.get(path).raise_for_status()
            times.append((time.perf_counter() - start) * 1000)
        found[name] = round(statistics.median(times), 1)
    return found


PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
SENT = """performance.getEntries().map(one => one.transferSize ?? 0)
  .reduce((sum, one) => sum + one, 0) / 1000"""


def first_paint(url: str) -> dict[str, float]:
    """In a browser without a cache, milliseconds until it has painted the page's frame, and until
    the list of jobs is there, at most; and the kB that came for it. Nothing without a browser."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        return {}
    from playwright.sync_api import sync_playwright

    found: dict[str, list[float]] = {"first paint": [], "its list of jobs": [], "kB": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for _ in range(ROUNDS):
            page = browser.new_context().new_page()
            page.goto(url)
            page.wait_for_selector("h1")
            for times, script in zip(
                found.values(), (PAINT, "performance.now()", SENT), strict=True
            ):
                times.append(page.evaluate(script))
            page.context.close()
        browser.close()
    return {name: round(statistics.median(times), 1) for name, times in found.items()}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--jobs", type=int, default=10_000)
    arguments.add_argument("--pictures", type=int, default=100_000)
    arguments.add_argument("--json", type=Path)
    asked = arguments.parse_args()
    spec = RenderRequest(prompt="a red circle").resolve(inspect_checkpoint(CHECKPOINT).info, seed=1)
    told = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        server = ServerProcess(data / "valkey", fsync="no")
        server.start()
        queue, store = Queue(connect(server.url)), open_store(str(data / "store"))
        with gateway(server.url, data) as url, httpx2.Client(base_url=url, timeout=60) as http:
            for name, jobs, pictures in (
                ("small", 10, TASK_PICTURES), ("large", asked.jobs, asked.pictures),
            ):  # fmt: skip
                job = large_job(queue, store, spec, pictures)
                small_jobs(queue, spec, jobs)
                told[name] = {**medians(http, job), **first_paint(url)}
        server.stop()
    print(f"{'':20} {'small':>10} {'large':>10}  ms, median of {ROUNDS}")
    for name, small in told["small"].items():
        print(f"{name:20} {small!s:>10} {told['large'][name]!s:>10}")
    if asked.json:
        asked.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
