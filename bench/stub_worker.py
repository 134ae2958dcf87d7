"""A worker whose engine only waits: ``python stub_worker.py NAME ROWS STEP_SECONDS``.

Its settings are in the environment, as for ``farm worker``. Everything around the engine is real.
"""

import logging
import signal
import sys

from farm.checkpoints.inspect import Checkpoint
from farm.settings import load
from farm_workers.render_engine import RenderEngine
from farm_workers.testing.stub_engine import StubEngine
from farm_workers.worker.crash_reporter import CrashReporter
from farm_workers.worker.settings import WorkerSettings
from farm_workers.worker.worker import Worker

MEASURED = "seconds of a step: "  # what it says at its end


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    name, rows, step_seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    engines = []

    def load_stub(checkpoint: Checkpoint, _: WorkerSettings) -> RenderEngine:
        engines.append(StubEngine(checkpoint.info, rows, step_seconds))
        return engines[-1]

    settings = load(WorkerSettings)
    reporter = CrashReporter(settings.redis_url, settings.name)
    worker = Worker(settings, name, load_engine=load_stub, crash_reporter=reporter)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop())
    worker.run()
    print(f"{MEASURED}{engines[0].measured_seconds:.5f}", flush=True)


if __name__ == "__main__":
    main()
