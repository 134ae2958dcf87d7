"""``farm worker``: one worker in this process, without Ray."""

import logging
import os
import signal
import socket
import threading
from typing import Annotated

import typer

from farm import garbage, logs, tracing


def worker(
    name: Annotated[
        str, typer.Option(help="Unique in the farm, and the same after a restart.")
    ] = "",
) -> None:
    """Run one worker here; it finds the farm by REDIS_URL and the FARM_ variables.

    SIGTERM and Ctrl-C end it cleanly: it takes no more work, finishes what it can in
    FARM_DRAIN_SECONDS (20) and hands the rest back; a second one ends it at once.
    """
    from farm.settings import load
    from farm.store import open_store
    from farm.store.probing import check_store
    from farm_workers.worker.crash_reporter import CrashReporter
    from farm_workers.worker.settings import WorkerSettings
    from farm_workers.worker.worker import Worker

    name = name or socket.gethostname()
    logs.configure(name)
    tracing.configure(name)
    settings = load(WorkerSettings)
    check_store(open_store(settings.store_url), single_writer=settings.single_writer)
    crash_reporter = CrashReporter(settings.redis_url, settings.name)
    running = Worker(settings, name, crash_reporter=crash_reporter)
    garbage.relax()
    signals = 0

    def end(*_: object) -> None:
        nonlocal signals
        signals += 1
        # In a thread: the main thread may hold a lock that is needed for it.
        if signals == 1:
            threading.Thread(target=running.drain, args=(settings.drain_seconds,)).start()
        else:
            threading.Thread(target=running.stop).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    status = 1
    try:
        running.run()
        status = 0
    except Exception:
        logging.getLogger(__name__).critical("the worker failed", exc_info=True)
    finally:
        logging.shutdown()
        # A thread that still waits for the store must not keep a worker that has ended from being
        # started again.
        os._exit(status)
