"""``python -m farm.cli.place_workers``: the scheduler's process that talks to Ray.

It says on its standard output what ``farm.scheduler.cluster_process`` reads, and ends with its
standard input, with its cluster, or when the scheduler kills it because a call does not return.
"""

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from typing import TextIO

import farm
from farm import logs
from farm.addresses import masked
from farm.errors import FarmError
from farm.queue.placed_workers import to_json
from farm.scheduler.cluster_process import (
    ALIVE,
    CANNOT,
    CLOSE,
    CLOSE_SECONDS,
    DEAD,
    WANT,
    WORKERS,
)
from farm.scheduler.placement import Placement
from farm.scheduler.settings import SchedulerSettings
from farm.settings import KeepingSettings, load
from farm_workers.worker.ray_actor import WorkerActor
from farm_workers.worker.settings import WorkerSettings

PASS_SECONDS = 0.1
PASSES_BETWEEN_STATES = 10
PASSING = (
    "FARM_RUN_DIR",
    "FARM_LOG_DIR",
    logs.VARIABLE,
    "FARM_DRAIN_SECONDS",
)  # they do not decide how a worker works

log = logging.getLogger(__name__)


def main() -> None:
    logs.configure("placement")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the scheduler's
    told = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what Ray prints is not for the scheduler
    orders = _Orders(sys.stdin)
    try:
        _place(told, orders)
    except FarmError as error:
        log.error(error.message)
    except Exception as error:  # Ray raises many unrelated classes
        log.error("%s: %s", type(error).__name__, " / ".join(str(error).splitlines()[:3]))
    finally:
        os._exit(0 if orders.ended.is_set() else 1)  # Ray's own end waits for a dead cluster


def _place(told: TextIO, orders: "_Orders") -> None:
    settings = load(SchedulerSettings)
    orders.heard.wait()  # how many workers there should be
    if orders.ended.is_set() and not orders.end_workers:  # an earlier life's are to end as well
        return
    placement = Placement(
        WorkerActor,
        settings.ray_address,
        f"{masked(settings.redis_url)} {settings.name}",  # a password may be changed
        settings.groups,
        worker_environment(os.environ),
        wanted=orders.wanted,
        passing=PASSING,
        metadata=describe(settings),
        report=lambda worker, cause: print(CANNOT, worker, cause, file=told),
    )
    log.info("connected to Ray at %s", settings.ray_address)
    passes = 0
    while not orders.ended.wait(PASS_SECONDS):
        placement.check()
        placement.want(orders.wanted)
        for life in placement.deaths():
            print(DEAD, life, file=told)
        if passes % PASSES_BETWEEN_STATES == 0:
            print(WORKERS, to_json(placement.workers()), file=told)
        passes += 1
        print(ALIVE, file=told)
    if orders.end_workers:
        placement.close()


def describe(settings: SchedulerSettings) -> dict[str, str]:
    """What Ray's dashboard knows of the farm; it shows ``job_name`` in its list of jobs."""
    told = {"farm": settings.name, "version": farm.__version__, "page": settings.page}
    return {"job_name": f"amused-farm {settings.page or settings.name}", **told}


class _Orders:
    """What the scheduler says: how many workers it wants, once and whenever that changes, then
    ``close`` or not, then the end of the file."""

    def __init__(self, source: TextIO) -> None:
        self.heard = threading.Event()
        self.ended = threading.Event()
        self.wanted: dict[str, int] = {}
        self.end_workers = False
        threading.Thread(target=self._listen, args=(source,), daemon=True).start()

    def _listen(self, source: TextIO) -> None:
        for line in source:
            kind, _, text = line.strip().partition(" ")
            self.end_workers |= kind == CLOSE
            if kind == WANT:
                self.wanted = json.loads(text)
                self.heard.set()
        self.ended.set()
        self.heard.set()
        timer = threading.Timer(CLOSE_SECONDS, os._exit, (1,))  # the other thread may be stuck
        timer.daemon = True
        timer.start()


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Of this process's environment what workers on other nodes need: their own settings, the
    credentials of the store, and where logs and traces go. The gateway's secret and its keys are
    not among them."""
    own = WorkerSettings.model_fields.keys() - KeepingSettings.model_fields.keys()
    names = {"REDIS_URL", logs.VARIABLE, *(f"FARM_{name.upper()}" for name in own)}
    return {
        name: value
        for name, value in environment.items()
        if name in names or name.startswith(("AWS_", "OTEL_"))
    }


if __name__ == "__main__":
    main()
