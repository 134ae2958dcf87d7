"""Measures the queue on a server of its own: rates, memory per queued task, latency when deep.

python bench/queue_rates.py [--tasks 1000000] [--json FILE]
"""

import argparse
import json
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from farm.job import JobOptions, Receipt, TaskDraft, job_id
from farm.local.valkey import ServerProcess
from farm.queue import JobHeader, Queue, check_server, connect
from farm.spec import Lane, Mode

PIECE = 200  # tasks a call
BATCH = 32  # tasks a lease
CLIENTS = 16  # at once: with appendfsync always a single one waits for the disk at every call
CHECKPOINT = "amused/amused-256@r1"
LANES = [Lane(CHECKPOINT, Mode.TEXT2IMG, side, side) for side in (256, 384, 512)]


def header(tenant: str) -> JobHeader:
    return JobHeader(job_id(), tenant, JobOptions(), secrets.token_hex(32))


def memory(queue: Queue) -> int:
    return int(queue.client.info("memory")["used_memory"])


def server_seconds(queue: Queue) -> float:
    cpu = queue.client.info("cpu")
    return float(cpu["used_cpu_sys"] + cpu["used_cpu_user"])


def measured(queue: Queue, name: str, tasks: int, act: Callable[[], None]) -> float:
    """Returns tasks a second."""
    cpu, start = server_seconds(queue), time.perf_counter()
    act()
    seconds = time.perf_counter() - start
    each = (server_seconds(queue) - cpu) / tasks * 1e6
    print(f"{name:34} {tasks / seconds:10,.0f} tasks/s   {each:6.1f} µs of server CPU each")
    return tasks / seconds


def fill(queue: Queue, tasks: int, tenants: int = 10, job_tasks: int = 10_000) -> None:
    for number in range(0, tasks, job_tasks):
        opened = queue.open(header(f"tenant-{number // job_tasks % tenants}"))
        pieces = range(0, min(job_tasks, tasks - number), PIECE)
        for piece, first in enumerate(pieces):
            drafts = [
                TaskDraft(at, LANES[at % len(LANES)], 1000, 12_000)
                for at in range(first, first + PIECE)
            ]
            queue.append(opened.job, piece, f"{piece:064x}", drafts)
        queue.close(opened.job, len(pieces))


def register(queue: Queue) -> str:
    session = secrets.token_hex(16)
    queue.register(session, "bench", [CHECKPOINT], {})
    return session


def drain(queue: Queue, tasks: int) -> None:
    session = register(queue)
    done = 0
    while done < tasks:
        leases = queue.lease(session, None, 10**9, 10**8, BATCH)
        queue.complete_all(
            session, [(lease, receipt(lease.pictures, lease.key)) for lease in leases]
        )
        done += len(leases)


def together(act: Callable[[], None]) -> None:
    with ThreadPoolExecutor(CLIENTS) as pool:
        for ended in [pool.submit(act) for _ in range(CLIENTS)]:
            ended.result()


def receipt(pictures: int, key: str) -> Receipt:
    return Receipt(
        done=pictures, failed=0, size=1, part=key, part_sha256="0" * 64, numerics="bench"
    )


def percentiles(name: str, seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100)
    return told(name, cuts[49] * 1e3, cuts[98] * 1e3)


def told(name: str, p50: float, p99: float) -> dict[str, float]:
    print(f"{name:34} p50 {p50:.2f} ms   p99 {p99:.2f} ms")
    return {"p50": round(p50, 2), "p99": round(p99, 2)}


def cancel_all(queue: Queue, tenants: int = 10) -> int:
    """Returns how many jobs that were."""
    cancelled = 0
    for number in range(tenants):
        tenant, before = f"tenant-{number}", None
        while jobs := queue.jobs(tenant, 200, before):
            for job in jobs:
                queue.cancel(job.id, tenant)
            cancelled, before = cancelled + len(jobs), jobs[-1].id
    return cancelled


def timed(count: int, act: Callable[[], object]) -> list[float]:
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tasks = arguments.tasks
    with (
        tempfile.TemporaryDirectory(prefix="farm-rates-", dir=arguments.data) as data,
        ServerProcess(Path(data)).serving() as server,
    ):
        report = measure(Queue(connect(server.url)), tasks)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure(queue: Queue, tasks: int) -> dict[str, object]:
    version = f"valkey {check_server(queue.client).version}, appendfsync always"
    print(version)
    report: dict[str, object] = {"server": version, "queued_tasks": tasks}
    small = tasks // 20
    before = memory(queue)

    def submit_small() -> None:
        for _ in range(small // CLIENTS):
            queue.submit(header("small"), [TaskDraft(0, LANES[0], 4, 48)])

    rate = measured(queue, "submit, jobs of one task", small, lambda: together(submit_small))
    report["submit_single_jobs_per_second"] = round(rate)
    each = (memory(queue) - before) / small
    print(f"{'memory, jobs of one task':34} {each:10,.0f} B each")
    report["bytes_per_job_of_one_task"] = round(each)
    # Not in the background, which would still be freeing while memory is measured.
    queue.client.execute_command("FLUSHALL", "SYNC")
    before = memory(queue)
    rate = measured(queue, f"append, {PIECE} a call", tasks, lambda: fill(queue, tasks))
    report["append_tasks_per_second"] = round(rate)
    each = (memory(queue) - before) / tasks
    print(f"{'memory, jobs of 10,000 tasks':34} {each:10,.0f} B each")
    report["bytes_per_task_in_jobs_of_10000"] = round(each)
    sessions = [register(queue) for _ in range(10)]
    queue.client.config_resetstat()
    seconds = []
    for session in sessions:
        seconds += timed(50, partial(queue.lease, session, None, 10**9, 10**8, BATCH))
    report["lease_32_ms"] = percentiles(f"lease {BATCH}, {tasks:,} queued", seconds)
    inside = queue.client.info("latencystats")["latency_percentiles_usec_evalsha"]
    report["script_inside_server_ms"] = told(
        "… the script inside the server", inside["p50"] / 1e3, inside["p99"] / 1e3
    )
    report["write_of_one_key_ms"] = percentiles(
        "for comparison: a SET by itself", timed(500, lambda: queue.client.set("x", 1))
    )
    for session in sessions:
        queue.end(session, "drain")
    rate = measured(
        queue,
        f"lease {BATCH} + complete",
        small,
        lambda: together(lambda: drain(queue, small // CLIENTS)),
    )
    report["lease_and_complete_tasks_per_second"] = round(rate)
    idle = [register(queue) for _ in range(1000)]
    other = [Lane("another@r1", Mode.TEXT2IMG, 256, 256)]
    cpu = server_seconds(queue)
    for one in idle:
        queue.lease(one, other, 64, 30_000)
    each = (server_seconds(queue) - cpu) / len(idle) * 1e6
    print(f"{'lease, nothing for the asker':34} {each:10,.1f} µs of server CPU")
    report["idle_lease_server_us"] = round(each)
    left = sum(work.tasks for work in queue.backlog())
    start = time.perf_counter()
    jobs = cancel_all(queue)
    took = time.perf_counter() - start
    print(f"{'cancel everything':34} {took:10.2f} s   {jobs} jobs, {left:,} tasks")
    assert queue.backlog() == []
    report["cancel_everything"] = {"seconds": round(took, 2), "jobs": jobs, "tasks": left}
    report["machine"] = f"{os.cpu_count()} shared cores, load average {os.getloadavg()[0]:.1f}"
    return report


if __name__ == "__main__":
    main()
