"""The worker: what talks to the queue, what steps the engines and what publishes, and one table.

The ``LeaseTable`` holds a ``LeasedTask`` for each lease. ``QueueSession`` fills the table and tells
the queue how leases end, in a thread that waits for grants and one for reports and heartbeats.
``Loader`` reads what a task needs. ``EngineLoop``, the main thread, renders its rows and hands
the pictures to ``Publisher``, whose process stores them. ``PreviewSender`` shows pictures on their
way to those who ask.
"""

import logging
import os
import re
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

import farm
from farm import tracing
from farm.checkpoints.inspect import Checkpoint, inspect_checkpoint
from farm.errors import InvalidInput
from farm.queue import Queue, connect
from farm.sinks.registry import Sinks
from farm.spec import CheckpointInfo, Lane, Mode
from farm.store import open_store
from farm_workers.leased_task import Outcome
from farm_workers.publisher.publisher import Event, Publisher
from farm_workers.render_engine import RenderEngine
from farm_workers.testing.faults import FaultyEngine
from farm_workers.testing.stub_engine import StubEngine
from farm_workers.testing.tracing import TracedEngine
from farm_workers.worker.crash_reporter import CrashReporter
from farm_workers.worker.engine_loop import EngineLoop
from farm_workers.worker.lease_table import LeaseTable
from farm_workers.worker.load_engine import load_engine
from farm_workers.worker.loader import Loader
from farm_workers.worker.metrics import WorkerMetrics
from farm_workers.worker.previews import PreviewMaker, PreviewSender
from farm_workers.worker.queue_session import QueueSession
from farm_workers.worker.settings import WorkerSettings
from farm_workers.worker.throughput import Throughput
from farm_workers.worker.timeline import Timeline

log = logging.getLogger(__name__)

BUFFERED_ENGINES = 3  # rows held, in engines' worth: one runs, the others are ready to follow

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # its scratch folder is named so, too

LoadEngine = Callable[[Checkpoint, WorkerSettings], RenderEngine]


class Worker:
    """One run of a worker.

    Args:
        settings: where everything is.
        name: of the worker, unique in the farm; the same after a restart.
        load_engine: makes the engine of a checkpoint; tests pass a fake one.
        crash_reporter: tells the queue how this process ended if it cannot do so itself.

    Raises:
        InvalidInput: a worker cannot have that name.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        name: str,
        *,
        load_engine: LoadEngine | None = None,
        crash_reporter: CrashReporter | None = None,
    ) -> None:
        if not _NAME.fullmatch(name):
            raise InvalidInput(
                f"{name[:40]!r} cannot be the name of a worker",
                field="--name",
                hint="letters, digits, dots, dashes and underscores, as in rack1-gpu0",
            )
        self.life = secrets.token_hex(16)  # of this run, whatever sessions it has
        self.name = name
        self._stopped = threading.Event()
        self._failure: Exception | None = None  # what ended another thread
        found = [inspect_checkpoint(checkpoint) for checkpoint in settings.checkpoints]
        infos = {checkpoint.info.name: checkpoint.info for checkpoint in found}
        engines = {
            checkpoint.info.name: _make_engine(checkpoint, settings, load_engine or _load_engine)
            for checkpoint in found
        }
        rows = {engine: engines[engine].room(_native(infos[engine])) for engine in engines}
        self.description = describe(engines)
        self._throughput = Throughput()
        self._leases = LeaseTable(BUFFERED_ENGINES * sum(rows.values()))
        scratch = settings.data / "scratch" / name
        self._publisher = Publisher(settings.store_url, scratch=scratch)
        self._metrics = WorkerMetrics(list(engines.values()), lambda: self._publisher.pending_bytes)
        queue = Queue(connect(settings.redis_url), farm=settings.name)
        self._previews = PreviewMaker()
        self._engine_loop = EngineLoop(
            engines, rows, self._leases, self._publisher, self._previews, self._metrics
        )
        self._preview_sender = PreviewSender(
            queue, self._leases, self._previews, name, self._stopped
        )
        store = open_store(settings.store_url)
        sinks, enqueue = Sinks(store, scratch), self._engine_loop.enqueue
        self._loader = Loader(
            store,
            sinks,
            queue,
            self._publisher,
            self._leases,
            infos,
            engines,
            enqueue,
            self._metrics,
            lambda: self.drain(settings.drain_seconds),
        )
        self._queue_session = QueueSession(
            queue,
            self._leases,
            self._engine_loop,
            self._publisher,
            self._loader.load,
            name,
            list(infos),
            {"life": self.life, **_session_info(infos, engines, self._leases.capacity)},
            lease_ms=settings.lease_ms,
            step_deadline_seconds=settings.step_deadline_seconds,
            crash_reporter=crash_reporter,
            stopped=self._stopped,
        )

    @property
    def session(self) -> str:
        """The token of its session; another one after the farm has ended that."""
        return self._queue_session.token

    @property
    def measured(self) -> dict[str, list[list[Any]]]:
        """What its last heartbeat told of its measures."""
        return self._metrics.latest

    @property
    def timeline(self) -> Timeline:
        """Of its tasks."""
        return self._leases.timeline

    def run(self) -> None:
        """Work until ``stop``; returns when what was leased has gone back.

        Raises:
            Exception: whatever went wrong in one of the threads; the queue then takes it that the
                tasks held here may have caused a crash.
        """
        self._queue_session.register()
        for target, name in (
            (self._queue_session.listen, "inbox"),
            (self._queue_session.control, "control"),
            (self._collect, "collect"),
            (self._preview_sender.run, "previews"),
        ):
            threading.Thread(target=self._guarded, args=(target,), name=name, daemon=True).start()
        crashed = True
        try:
            while not self._stopped.is_set():
                self._engine_loop.turn()
            if self._failure is not None:
                raise self._failure
            crashed = False
        finally:
            self._stopped.set()
            try:
                self._queue_session.leave("crash" if crashed else "drain")
            finally:
                self._publisher.close()
                self._loader.close()
                tracing.flush()

    def drain(self, seconds: float) -> None:
        """Ask the worker to end within that time and a few seconds more: it takes no more work,
        finishes what it can and hands the rest back. What is finished is stored and stays."""
        self._queue_session.drain(seconds)

    def stop(self) -> None:
        """Ask the worker to end now; its leases go back to the queue unharmed."""
        self._stopped.set()
        self._leases.engines_wanted.set()

    def _guarded(self, target: Callable[[], None]) -> None:
        """A thread that dies ends the worker: half a worker would only hold leases."""
        try:
            target()
        except Exception as error:
            log.critical("%s failed", threading.current_thread().name, exc_info=True)
            self._failure = error
            self.stop()

    def _stored(self, event: Event) -> None:
        self._metrics.stored(event.encode_seconds, event.upload_seconds)
        self._throughput.stored()
        job, lease = event.task.lease.job, event.task.lease_name
        seconds = event.encode_seconds + event.upload_seconds
        tracing.in_task("store", job, lease, seconds, object=event.file)

    def _collect(self) -> None:
        """Note which tasks the publisher has finished."""
        while not self._stopped.is_set():
            for event in self._publisher.poll(0.5):
                if event.kind == "picture":
                    self._leases.engines_wanted.set()  # they may wait for the publisher
                    self._stored(event)
                else:
                    if event.receipt is not None:
                        self._throughput.stored(len(event.task.tokens or ()))
                    self._leases.end(event.task, _outcome(event))
            self._throughput.tell()


def _outcome(event: Event) -> Outcome:
    if event.receipt is not None:
        return Outcome(event.receipt)
    final = event.error is not None and not event.error.retryable
    return Outcome(None, "row" if final else "infra", str(event.error))


def _session_info(
    infos: Mapping[str, CheckpointInfo], engines: Mapping[str, RenderEngine], capacity: int
) -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "version": farm.__version__,
        "capacity": capacity,
        "checkpoints": [info.model_dump(mode="json") for info in infos.values()],
        "numerics": {name: engine.numerics for name, engine in engines.items()},
        "device": ", ".join(sorted({engine.device for engine in engines.values()})),
    }


def describe(engines: Mapping[str, RenderEngine]) -> str:
    """On what a worker draws, with which checkpoints, and the numerics class of each: said once
    where that differs in the checkpoint alone."""
    classes: dict[tuple[str, str], list[str]] = {}
    for name, engine in engines.items():
        rest = engine.numerics.removeprefix(f"{name}; ")
        classes.setdefault((engine.device, rest), []).append(name)
    return " | ".join(
        f"{device}: {', '.join(names)}; {numerics}" for (device, numerics), names in classes.items()
    )


def _native(info: CheckpointInfo) -> Lane:
    return Lane(info.name, Mode.TEXT2IMG, info.native_height, info.native_width)


def _make_engine(
    checkpoint: Checkpoint, settings: WorkerSettings, load: LoadEngine
) -> RenderEngine:
    engine = load(checkpoint, settings)
    if settings.faults:
        engine = FaultyEngine(engine, settings.faults)
    if settings.trace is not None:
        engine = TracedEngine(engine, settings.trace)
    return engine


def _load_engine(checkpoint: Checkpoint, settings: WorkerSettings) -> RenderEngine:
    if settings.stub:
        return StubEngine(checkpoint.info, settings.rows)
    engine: RenderEngine = load_engine(
        checkpoint,
        device=settings.device,
        dtype=settings.dtype,
        rows=settings.rows,
        tile=settings.tile,
        threads=settings.threads,
        attention=settings.attention,
    )
    log.info("loaded %s: %s", checkpoint.info.name, engine.numerics)
    return engine
