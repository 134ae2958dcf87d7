"""``farm scheduler``: grants queued work to workers and places workers on a Ray cluster."""

import contextlib
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from farm import logs
from farm.errors import FarmError
from farm.paths import SCHEDULER_ALIVE

if TYPE_CHECKING:
    from farm.queue import Queue
    from farm.scheduler.placer import Placer
    from farm.scheduler.settings import SchedulerSettings

log = logging.getLogger(__name__)


def scheduler() -> None:
    """Run a scheduler here; it finds the farm by REDIS_URL, and Ray by RAY_ADDRESS. FARM_WORKERS,
    FARM_MIN_WORKERS and FARM_MAX_WORKERS say how many workers it places there.

    Several may run at once, and one that is killed loses nothing; the one that started last places
    the workers. SIGTERM and Ctrl-C end it.
    """
    from farm.queue import Queue, connect
    from farm.scheduler.scheduler import Scheduler
    from farm.scheduler.settings import SchedulerSettings
    from farm.scheduler.sweeper import Sweeper
    from farm.settings import load
    from farm.store import open_store

    logs.configure("scheduler")
    settings = load(SchedulerSettings)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    queue = Queue(connect(settings.redis_url), farm=settings.name)
    placer = _placer(settings, queue) if settings.ray_address else None
    # A client of its own: deleting takes long, and granting must not wait for it.
    sweeper = Sweeper(
        Queue(connect(settings.redis_url), farm=settings.name), open_store(settings.store_url)
    )
    sweeper.start(stopped)
    log.info("scheduling for %s workers", settings.workers if placer else "all")
    try:
        Scheduler(queue, lease_ms=settings.lease_ms, placement=placer).run(stopped, _touch)
    finally:
        if placer is not None:
            placer.close()


def _touch() -> None:
    """Tell farm up that this process is neither stopped nor stuck; a full disk allows it too."""
    if folder := os.environ.get("FARM_RUN_DIR"):
        with contextlib.suppress(OSError):
            (Path(folder) / SCHEDULER_ALIVE).touch()


def _placer(settings: "SchedulerSettings", queue: "Queue") -> "Placer":
    from farm.queue.notice import post
    from farm.scheduler.cluster_process import RAY, ClusterProcess
    from farm.scheduler.placer import Placer

    def report(what: str, cause: str) -> None:
        log.warning("%s: %s", what, cause)
        with contextlib.suppress(FarmError):
            post(queue, f"{what}: {cause}")
        if what != RAY and (folder := os.environ.get("FARM_RUN_DIR")):
            # farm up looks there while it waits for the workers.
            with contextlib.suppress(OSError):
                (Path(folder) / f"{what}.failed").write_text(cause + "\n", "utf-8")

    groups = settings.groups
    cluster = ClusterProcess(
        [sys.executable, "-P", "-m", "farm.cli.place_workers"],
        settings.ray_address.removeprefix("ray://"),
        os.environ,
        report=report,
    )
    return Placer(
        queue,
        cluster,
        groups,
        target_seconds=settings.target_wait_seconds,
        end_workers=settings.end_workers,
    )
