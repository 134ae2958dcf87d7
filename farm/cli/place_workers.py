"""``python -m farm.cli.place_workers``: the scheduler's process that talks to Ray.

It says on its standard output what ``farm.scheduler.cluster_process`` reads, and ends with its
standard input, with its cluster, or when the scheduler kills it because a call does not return.
"""

import logging
import os
import signal
import sys
import threading
from typing import TextIO

import farm
from farm import logs
from farm.errors import FarmError
from farm.scheduler.cluster_process import ALIVE, CANNOT, CLOSE, CLOSE_SECONDS, DEAD
from farm.scheduler.placement import Placement, worker_environment
from farm.scheduler.scheduler import SchedulerSettings
from farm.settings import load
from farm_workers.worker.ray_actor import WorkerActor

PASS_SECONDS = 0.1

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
    placement = Placement(
        WorkerActor,
        settings.ray_address,
        f"{settings.redis_url} {settings.name}",
        settings.workers,
        worker_environment(os.environ),
        num_gpus=settings.worker_gpus,
        num_cpus=settings.worker_cpus,
        metadata={"farm": settings.name, "version": farm.__version__, "page": settings.page},
        report=lambda worker, cause: print(CANNOT, worker, cause, file=told),
    )
    log.info("connected to Ray at %s", settings.ray_address)
    while not orders.ended.wait(PASS_SECONDS):
        placement.check()
        for session in placement.deaths():
            print(DEAD, session, file=told)
        print(ALIVE, file=told)
    if orders.end_workers:
        placement.close()


class _Orders:
    """What the scheduler says: nothing, then ``close`` or not, then the end of the file."""

    def __init__(self, source: TextIO) -> None:
        self.ended = threading.Event()
        self.end_workers = False
        threading.Thread(target=self._listen, args=(source,), daemon=True).start()

    def _listen(self, source: TextIO) -> None:
        for line in source:
            self.end_workers |= line.strip() == CLOSE
        self.ended.set()
        timer = threading.Timer(CLOSE_SECONDS, os._exit, (1,))  # the other thread may be stuck
        timer.daemon = True
        timer.start()


if __name__ == "__main__":
    main()
