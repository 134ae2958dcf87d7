"""How long a farm takes to go on after a kill: task leased again, and the first lease of a server
that is back.

python bench/recovery.py [--trials 30] [--json FILE]

A victim holds a task and is killed with SIGKILL; another session with room waits. Who tells the
queue of the death: the victim's crash reporter, Ray, or nothing, so that the lease runs out.
"""

import argparse
import contextlib
import json
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from farm.errors import Unavailable
from farm.job import JobOptions, Lease, TaskDraft, job_id
from farm.local.embedded import Embedded
from farm.local.plan import Plan
from farm.local.supervisor import Supervisor
from farm.local.valkey import ServerProcess
from farm.queue import JobHeader, Queue, connect
from farm.scheduler.scheduler import Scheduler
from farm.spec import Lane, Mode

LEASE_MS = 10_000  # the default of scheduler and worker
CHECKPOINT = "amused/amused-256@r1"
LANE = Lane(CHECKPOINT, Mode.TEXT2IMG, 256, 256)
GIVE_UP_SECONDS = 60.0
RESTARTED_SECONDS = 5.0  # in which a victim's next life does not take its own task back

VICTIM = """
import secrets, sys, time
from farm.queue import Queue, connect
from farm_workers.worker.crash_reporter import CrashReporter

redis_url, checkpoint, lease_ms, reported = sys.argv[1:]
queue = Queue(connect(redis_url))
session = secrets.token_hex(16)
if reported == "yes":
    reporter = CrashReporter(redis_url, "farm")
    reporter.follow(session)
queue.register(session, "victim", [checkpoint], {})
queue.heartbeat(session, 1000, {}, {}, int(lease_ms))
while not queue.held(session):
    queue.lease(session, None, 1000, int(lease_ms))
    time.sleep(0.01)
print("holds", flush=True)
while True:
    time.sleep(1)
    queue.heartbeat(session, 0, {}, {}, int(lease_ms))
"""


class Successor:
    """A session with room, and a scheduler; ``take`` waits until a task has come to it."""

    def __init__(self, queue: Queue, scheduler: Scheduler) -> None:
        self._queue = queue
        self._session = secrets.token_hex(16)
        self.room = 0
        self._stopped = threading.Event()
        queue.register(self._session, "successor", [CHECKPOINT], {})
        self._threads = [
            threading.Thread(target=scheduler.run, args=(self._stopped,), daemon=True),
            threading.Thread(target=self._beat, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def open(self) -> None:
        self.room = 1000
        self._queue.heartbeat(self._session, self.room, {}, {}, LEASE_MS)

    def take(self) -> float:
        """When the task came; it is given up for good, and the door is closed."""
        end = time.monotonic() + GIVE_UP_SECONDS
        while time.monotonic() < end:
            for lease in self._inbox():
                came = time.monotonic()
                self._queue.fail(self._session, lease, "row", "the bench is through with it")
                if lease.finalise:  # of the trial before
                    continue
                self.room = 0
                self._queue.heartbeat(self._session, 0, {}, {}, LEASE_MS)
                return came
        raise TimeoutError("the task was never leased again")

    def _inbox(self) -> list[Lease]:
        with contextlib.suppress(Unavailable):
            return self._queue.inbox(self._session, 2.0)
        return []

    def close(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _beat(self) -> None:
        while not self._stopped.wait(1.0):
            with contextlib.suppress(Unavailable):
                self._queue.heartbeat(self._session, self.room, {}, {}, LEASE_MS)


def submit(queue: Queue) -> None:
    header = JobHeader(job_id(), "bench", JobOptions(), secrets.token_hex(32))
    queue.submit(header, [TaskDraft(0, LANE, 8, 96)])


def after_kills(server: ServerProcess, trials: int, reported: bool) -> Iterator[float]:
    queue = Queue(connect(server.url))
    successor = Successor(queue, Scheduler(queue, lease_ms=LEASE_MS))
    random = Random(0)
    for _ in range(trials):
        submit(queue)
        victim = subprocess.Popen(
            [
                *(sys.executable, "-c", VICTIM, server.url, CHECKPOINT, str(LEASE_MS)),
                "yes" if reported else "no",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert victim.stdout is not None
        victim.stdout.readline()
        time.sleep(1.5 + random.random())  # the reporter is up, and the kill falls between beats
        successor.open()
        killed = time.monotonic()
        victim.kill()
        yield successor.take() - killed
        victim.wait()
    successor.close()


class RayVictim:
    """Stands in for ``WorkerActor``: its process holds a task and has no crash reporter."""

    def __init__(self, worker: str, environment: dict[str, str], fingerprint: str) -> None:
        self._queue = Queue(connect(environment["REDIS_URL"]))
        self._session = self._life = secrets.token_hex(16)
        self._fingerprint = fingerprint
        threading.Thread(target=self._hold, args=(worker,), daemon=True).start()

    def _hold(self, worker: str) -> None:
        time.sleep(RESTARTED_SECONDS)
        self._queue.register(
            self._session, worker, [CHECKPOINT], {"pid": os.getpid(), "life": self._life}
        )
        while True:
            room = 0 if self._queue.held(self._session) else 1000
            self._queue.heartbeat(self._session, room, {}, {}, LEASE_MS)
            time.sleep(1)

    def life(self) -> tuple[str, str, str]:
        return self._life, self._fingerprint, ""

    def join(self, seconds: float) -> bool:
        time.sleep(seconds)
        return False


def after_kills_seen_by_ray(server: ServerProcess, trials: int) -> Iterator[float]:
    with tempfile.TemporaryDirectory(prefix="recovery-") as folder:
        plan = Plan(Path(folder), 1, 1, (), redis_url=server.url, gpus=0)
        embedded = Embedded(plan)
        supervisor = Supervisor(plan.data, threading.Event())
        supervisor.start(next(part for part in embedded.services() if part.name == "ray"))
        os.environ.update(embedded.environment)  # Ray reads it when it is imported
        import ray

        from farm.scheduler.placement import Placement
        from farm.worker_group import WorkerGroup

        placement = Placement(
            RayVictim,
            embedded.ray_address,
            "recovery",
            [WorkerGroup("worker", 1, 1)],
            {"REDIS_URL": server.url},
            wanted={"worker": 1},
        )
        queue = Queue(connect(server.url))
        successor = Successor(queue, Scheduler(queue, lease_ms=LEASE_MS, placement=placement))
        random = Random(0)
        try:
            for _ in range(trials):
                submit(queue)
                while not (held := [one for one in queue.sessions() if one.held and one.info]):
                    time.sleep(0.05)
                time.sleep(1 + random.random())
                successor.open()
                killed = time.monotonic()
                os.kill(held[0].info["pid"], signal.SIGKILL)
                yield successor.take() - killed
        finally:
            successor.close()
            placement.close()
            ray.shutdown()
            supervisor.stop("ray")


def after_restarts(server: ServerProcess, trials: int) -> Iterator[float]:
    queue = Queue(connect(server.url))
    successor = Successor(queue, Scheduler(queue, lease_ms=LEASE_MS))
    random = Random(0)
    for _ in range(trials):
        submit(queue)
        server.kill()
        time.sleep(0.5 + 3 * random.random())
        successor.room = 1000
        server.start()
        server.ready()
        back = time.monotonic()
        yield successor.take() - back
    successor.close()


KINDS: dict[str, Callable[[ServerProcess, int], Iterator[float]]] = {
    "worker killed, its crash reporter tells": lambda server, trials: after_kills(
        server, trials, True
    ),
    "worker killed, Ray tells": after_kills_seen_by_ray,
    "worker killed, its lease runs out": lambda server, trials: after_kills(
        server, max(trials // 4, 1), False
    ),
    "server back, first lease": after_restarts,
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--trials", type=int, default=30)
    options.add_argument("--json", type=Path, help="the result goes here as well")
    given = options.parse_args()
    result = {}
    for name, measure in KINDS.items():
        with (
            tempfile.TemporaryDirectory(prefix="recovery-") as folder,
            ServerProcess(Path(folder)).serving() as server,
        ):
            seconds = sorted(measure(server, given.trials))
        result[name] = {
            "trials": len(seconds),
            "p50_seconds": round(statistics.median(seconds), 2),
            # Of so few the 99th percentile is the longest.
            "p99_seconds": round(seconds[min(int(0.99 * len(seconds)), len(seconds) - 1)], 2),
        }
        print(name, result[name], file=sys.stderr, flush=True)
    if given.json:  # a file: Ray prints what it likes to stdout
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
