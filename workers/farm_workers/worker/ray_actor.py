"""The worker as a Ray actor: a thread that works, and calls that never wait for it."""

import contextlib
import logging
import os
import threading
from collections.abc import Mapping

import ray

from farm.paths import write_pid
from farm.settings import load
from farm_workers.worker.crash_reporter import CrashReporter
from farm_workers.worker.settings import WorkerSettings
from farm_workers.worker.worker import Worker


class WorkerActor:
    """Placed by ``farm.scheduler.placement``; after a crash Ray runs ``__init__`` again, no more.

    So the work starts here and no call has to be repeated. One call of ``join`` is always pending:
    its failure is Ray's certificate of death.
    """

    def __init__(self, worker: str, environment: Mapping[str, str], fingerprint: str) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        os.environ.update(environment)
        settings = load(WorkerSettings)
        self._ended = threading.Event()
        self._worker = Worker(
            settings, worker, crash_reporter=CrashReporter(settings.redis_url, settings.name)
        )
        self._fingerprint = fingerprint
        if settings.run_dir is not None:
            with contextlib.suppress(OSError):  # the folder is on the machine of ``farm up``
                write_pid(settings.run_dir / f"{worker}.pid", os.getpid())
        self._thread = threading.Thread(target=self._work, name="main", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self._worker.run()
        except Exception:
            logging.getLogger(__name__).critical("the worker failed", exc_info=True)
            os._exit(1)
        finally:
            self._ended.set()

    def life(self) -> tuple[str, str, str]:
        """A token that is another one after a restart, what it was placed with, and its node."""
        return self._worker.life, self._fingerprint, ray.get_runtime_context().get_node_id()

    def drain(self, seconds: float) -> None:
        """Take no more work, finish what can be finished in that time, and end."""
        self._worker.drain(seconds)

    def join(self, seconds: float) -> bool:
        """Return after so many seconds, whether the worker has ended; the caller asks again.

        A call that never returned would keep one of the actor's threads for every scheduler that
        died while it waited.
        """
        return self._ended.wait(seconds)
