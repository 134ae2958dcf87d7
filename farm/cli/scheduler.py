"""``farm scheduler``: grants queued work to workers and places workers on a Ray cluster."""

import contextlib
import logging
import os
import signal
import threading
from pathlib import Path


def scheduler() -> None:
    """Run a scheduler here; it finds the farm by REDIS_URL, and Ray by RAY_ADDRESS.

    Several may run at once, and one that is killed loses nothing. SIGTERM and Ctrl-C end it.
    """
    from farm.queue import Queue, connect
    from farm.scheduler.scheduler import Scheduler, SchedulerSettings
    from farm.settings import load

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = load(SchedulerSettings)
    placement = None
    if settings.ray_address and settings.workers:
        from farm.scheduler.placement import Placement, worker_environment
        from farm_workers.worker.ray_actor import WorkerActor

        placement = Placement(
            WorkerActor,
            settings.ray_address,
            f"{settings.redis_url} {settings.name}",
            settings.workers,
            worker_environment(os.environ),
            num_gpus=settings.worker_gpus,
            num_cpus=settings.worker_cpus,
            report=_report,
        )
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # after Ray, which takes them for itself
        signal.signal(number, lambda *_: stopped.set())
    queue = Queue(connect(settings.redis_url), farm=settings.name)
    log = logging.getLogger(__name__)
    log.info("scheduling for %d workers", settings.workers)
    Scheduler(queue, lease_ms=settings.lease_ms, placement=placement).run(stopped)
    if placement is not None and settings.end_workers:
        placement.close()


def _report(worker: str, cause: str) -> None:
    """Write it where ``farm up`` looks while it waits for the workers."""
    if folder := os.environ.get("FARM_RUN_DIR"):
        with contextlib.suppress(OSError):
            (Path(folder) / f"{worker}.failed").write_text(cause + "\n")
