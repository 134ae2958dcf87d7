"""Measures the queue on a server of its own: rates, memory per queued task, latency when deep.

python bench/queue_rates.py [--tasks 1000000]
"""

import argparse
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from farm.job import JobOptions, Receipt, TaskDraft, job_id
from farm.queue import JobHeader, Queue, check_server, connect
from farm.spec import Lane, Mode
from farm.valkey import ServerProcess

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


def measured(queue: Queue, name: str, tasks: int, act: Callable[[], None]) -> None:
    cpu, start = server_seconds(queue), time.perf_counter()
    act()
    seconds = time.perf_counter() - start
    each = (server_seconds(queue) - cpu) / tasks * 1e6
    print(f"{name:34} {tasks / seconds:10,.0f} tasks/s   {each:6.1f} µs of server CPU each")


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


def percentiles(name: str, seconds: list[float]) -> None:
    cuts = statistics.quantiles(seconds, n=100)
    print(f"{name:34} p50 {cuts[49] * 1e3:.2f} ms   p99 {cuts[98] * 1e3:.2f} ms")


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
    arguments = parser.parse_args()
    tasks = arguments.tasks
    with (
        tempfile.TemporaryDirectory(prefix="farm-rates-", dir=arguments.data) as data,
        ServerProcess(Path(data)).serving() as server,
    ):
        queue = Queue(connect(server.url))
        print(f"server {check_server(queue.client).version}, appendfsync always")
        small = tasks // 20
        before = memory(queue)

        def submit_small() -> None:
            for _ in range(small // CLIENTS):
                queue.submit(header("small"), [TaskDraft(0, LANES[0], 4, 48)])

        measured(queue, "submit, jobs of one task", small, lambda: together(submit_small))
        print(f"{'memory, jobs of one task':34} {(memory(queue) - before) / small:10,.0f} B each")
        # Not in the background, which would still be freeing while memory is measured.
        queue.client.execute_command("FLUSHALL", "SYNC")
        before = memory(queue)
        measured(queue, f"append, {PIECE} a call", tasks, lambda: fill(queue, tasks))
        used = memory(queue) - before
        print(f"{'memory, jobs of 10,000 tasks':34} {used / tasks:10,.0f} B each")
        session = register(queue)
        queue.client.config_resetstat()
        percentiles(
            f"lease {BATCH}, {tasks:,} queued",
            timed(500, lambda: queue.lease(session, None, 10**9, 10**8, BATCH)),
        )
        # Two scripts a call: the grant, and what a worker needs to start.
        inside = queue.client.info("latencystats")["latency_percentiles_usec_evalsha"]
        print(f"{'… a script inside the server':34} p50 {inside['p50'] / 1e3:.2f} ms", end="   ")
        print(f"p99 {inside['p99'] / 1e3:.2f} ms")
        queue.end(session, "drain")
        measured(
            queue,
            f"lease {BATCH} + complete",
            small,
            lambda: together(lambda: drain(queue, small // CLIENTS)),
        )
        idle = [register(queue) for _ in range(1000)]
        other = [Lane("another@r1", Mode.TEXT2IMG, 256, 256)]
        cpu = server_seconds(queue)
        for one in idle:
            queue.lease(one, other, 64, 30_000)
        each = (server_seconds(queue) - cpu) / len(idle) * 1e6
        print(f"{'lease, nothing for the asker':34} {each:10,.1f} µs of server CPU")


if __name__ == "__main__":
    main()
