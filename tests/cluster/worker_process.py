"""A worker in a process of its own, with a fake engine: ``python worker_process.py NAME``.

Its settings are in the environment, as for ``farm worker``.
"""

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fake_engine import INFO, FakeDone, FakeEngine

from farm.checkpoints.inspect import Checkpoint
from farm.settings import load
from farm_workers.worker import worker as worker_module
from farm_workers.worker.crash_reporter import CrashReporter
from farm_workers.worker.settings import WorkerSettings
from farm_workers.worker.worker import Worker


class NotingEngine(FakeEngine):
    """Writes a line for each row that it finishes to the file that ``FINISHED`` names, and makes no
    step while there is a file of the name that ``HELD`` has."""

    def step(self) -> list[FakeDone]:
        while Path(os.environ.get("HELD", "/nowhere")).exists():
            time.sleep(0.02)
        done = super().step()
        if (file := os.environ.get("FINISHED")) and done:
            with open(file, "a") as out:
                out.writelines(f"{one.key} {one.index}\n" for one in done)
        return done


def drain(worker: Worker, seconds: float) -> None:
    threading.Thread(target=worker.drain, args=(seconds,)).start()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = load(WorkerSettings)
    worker_module.inspect_checkpoint = lambda _: Checkpoint(  # type: ignore[attr-defined]
        path=settings.data, info=INFO
    )
    worker = Worker(
        settings,
        sys.argv[1],
        load_engine=lambda *_: NotingEngine(rows=4, step_seconds=0.02),
        crash_reporter=CrashReporter(
            settings.redis_url,
            settings.name,
            frozen_seconds=float(os.environ.get("FROZEN_SECONDS", "30")),
        ),
    )
    signal.signal(signal.SIGTERM, lambda *_: drain(worker, settings.drain_seconds))
    worker.run()


if __name__ == "__main__":
    main()
