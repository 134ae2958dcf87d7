"""A worker in a process of its own, with a fake engine: ``python worker_process.py NAME``.

Its settings are in the environment, as for ``farm worker``.
"""

import logging
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fake_engine import INFO, FakeEngine

from farm.checkpoints.inspect import Checkpoint
from farm.settings import load
from farm_workers.worker import worker as worker_module
from farm_workers.worker.crash_reporter import CrashReporter
from farm_workers.worker.settings import WorkerSettings
from farm_workers.worker.worker import Worker


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = load(WorkerSettings)
    worker_module.inspect_checkpoint = lambda _: Checkpoint(  # type: ignore[attr-defined]
        path=settings.data, info=INFO
    )
    worker = Worker(
        settings,
        sys.argv[1],
        load_engine=lambda *_: FakeEngine(rows=4, step_seconds=0.02),
        crash_reporter=CrashReporter(
            settings.redis_url,
            settings.name,
            frozen_seconds=float(os.environ.get("FROZEN_SECONDS", "30")),
        ),
    )
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    worker.run()


if __name__ == "__main__":
    main()
