"""The worker as a Ray actor: a thread that works, and calls that never wait for it."""

import contextlib
import logging
import os
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import ray

from farm import garbage, logs, tracing
from farm.disk import put_whole
from farm.settings import load
from farm_workers.worker.crash_reporter import CrashReporter
from farm_workers.worker.settings import WorkerSettings
from farm_workers.worker.timeline import KIND, Facts
from farm_workers.worker.worker import Worker

TOLD_SECONDS = 5.0  # between two times that Ray hears of the metrics


class WorkerActor:
    """Placed by ``farm.scheduler.placement``; after a crash Ray runs ``__init__`` again, no more.

    So the work starts here and no call has to be repeated. One call of ``join`` is always pending:
    its failure is Ray's certificate of death.
    """

    def __init__(self, worker: str, environment: Mapping[str, str], fingerprint: str) -> None:
        os.environ.update(environment)
        settings = load(WorkerSettings)
        # Ray's dashboard shows what goes to stderr.
        file = settings.log_dir and settings.log_dir / f"{worker}.log"
        logs.configure(worker, file=file)
        tracing.configure(worker)
        self._ended = threading.Event()
        self._worker = Worker(
            settings, worker, crash_reporter=CrashReporter(settings.redis_url, settings.name)
        )
        garbage.relax()
        self._fingerprint = fingerprint
        if settings.run_dir is not None:
            with contextlib.suppress(OSError):  # the folder is on the machine of ``farm up``
                put_whole(settings.run_dir / f"{worker}.pid", f"{os.getpid()}\n".encode())
        self._thread = threading.Thread(target=self._work, name="main", daemon=True)
        self._thread.start()
        threading.Thread(target=self._tell_ray, name="ray-metrics", daemon=True).start()

    def _work(self) -> None:
        try:
            self._worker.run()
        except Exception:
            logging.getLogger(__name__).critical("the worker failed", exc_info=True)
            os._exit(1)
        finally:
            self._ended.set()
            self._worker.timeline.close()

    def _tell_ray(self) -> None:
        from farm_workers.worker.ray_metrics import RayMetrics

        metrics = RayMetrics(self._worker.name)
        while not self._ended.wait(TOLD_SECONDS):
            metrics.tell(self._worker.measured)

    def __repr__(self) -> str:
        """What Ray's dashboard says of the actor; it asks once, when this has been loaded."""
        return f"{self._worker.name} on {self._worker.description}"

    def life(self) -> tuple[str, str, str]:
        """A token that is another one after a restart, what it was placed with, and its node."""
        return self._worker.life, self._fingerprint, ray.get_runtime_context().get_node_id()

    def drain(self, seconds: float) -> None:
        """Take no more work, finish what can be finished in that time, and end."""
        self._worker.drain(seconds)

    def join(self, seconds: float) -> bool:
        """Return after so many seconds, whether the worker has ended; the caller asks again.

        A call that never returned would keep one of the actor's threads for every scheduler that
        died while it waited. Spans of tasks that end meanwhile are in Ray's timeline.
        """
        return self._worker.timeline.follow(seconds, _open_span)


def _open_span(facts: Facts) -> AbstractContextManager[object]:
    """What ``ray._private.profiling.profile`` does where RAY_PROFILING is set. Ray has no public
    call for it, and with that variable every wait for an object would be a span as well."""
    try:
        worker: Any = ray._private.worker.global_worker
        span: AbstractContextManager[object] = worker.core_worker.profile_event(
            KIND.encode(), facts
        )
    except (AttributeError, TypeError):  # another version of Ray; work goes on without spans
        return nullcontext()
    return span
