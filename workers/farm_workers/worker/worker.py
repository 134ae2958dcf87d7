"""The worker: drives the engines with what the queue grants, hands pictures to the publisher.

Four threads: the main loop owns the engines and every ``LeasedTask``; ``QueueSession`` has one that
waits for grants and one that beats and reports; the publisher's thread brings what was stored.
Only the main loop touches a device, so a slow server never stops a step.
"""

import dataclasses
import logging
import os
import queue as queues
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from farm.checkpoints.inspect import Checkpoint, inspect_checkpoint
from farm.errors import FarmError, RenderError
from farm.formats.picture_record import PictureRecord
from farm.job import Lease
from farm.queue import Queue, connect
from farm.sinks.registry import Sinks
from farm.spec import Lane, Mode, Row
from farm.store import open_store
from farm_workers.publisher.publisher import Event, Publisher
from farm_workers.render_engine import RenderEngine
from farm_workers.testing.faults import FaultyEngine
from farm_workers.testing.tracing import TracedEngine
from farm_workers.worker.crash_reporter import CrashReporter
from farm_workers.worker.drain import drain
from farm_workers.worker.lease_table import LeaseTable
from farm_workers.worker.leased_task import InputFailed, LeasedTask
from farm_workers.worker.load_engine import load_engine
from farm_workers.worker.loader import Loader
from farm_workers.worker.queue_session import QueueSession, Report
from farm_workers.worker.settings import WorkerSettings

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.05  # longest sleep of the main loop; a grant wakes it at once
URGENT_SHARE = 8  # one of so many rows of an engine is kept free for urgent tasks
BUFFERED_ENGINES = 3  # rows held, in engines' worth: one runs, the others are ready to follow
PENDING_BYTES = 512 * 2**20  # given to the publisher and not stored; above it the engines wait


@dataclasses.dataclass
class _Pace:
    """What a lane has had of the engine's time, and what it made of it."""

    row_steps: int = 0
    seconds: float = 0.0


class Worker:
    """One life of a worker.

    Args:
        settings: where everything is.
        worker: its name, unique in the farm; the same after a restart.
        load_engine: makes the engine of a checkpoint; tests pass a fake one.
        crash_reporter: tells the queue how this process ended, where it cannot do so itself.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        worker: str,
        *,
        load_engine: Callable[[Checkpoint, WorkerSettings], RenderEngine] | None = None,
        crash_reporter: CrashReporter | None = None,
    ) -> None:
        self.settings = settings
        self.stopped = threading.Event()
        found = [inspect_checkpoint(name) for name in settings.checkpoints]
        infos = {checkpoint.info.name: checkpoint.info for checkpoint in found}
        load = load_engine or _load_engine
        self._engines: dict[str, RenderEngine] = {
            checkpoint.info.name: load(checkpoint, settings) for checkpoint in found
        }
        for name, engine in self._engines.items():
            if settings.faults:
                engine = FaultyEngine(engine, settings.faults)
            if settings.trace is not None:
                engine = TracedEngine(engine, settings.trace)
            self._engines[name] = engine
        rows = {
            name: self._engines[name].room(
                Lane(name, Mode.TEXT2IMG, info.native_height, info.native_width)
            )
            for name, info in infos.items()
        }
        self.capacity = BUFFERED_ENGINES * sum(rows.values())
        self._reserve = {name: count // URGENT_SHARE for name, count in rows.items()}
        self._aboard = LeaseTable()
        scratch = settings.data / "scratch" / worker
        self._publisher = Publisher(settings.store_url, scratch=scratch)
        queue = Queue(connect(settings.redis_url), farm=settings.name)
        self._queue_session = QueueSession(
            queue,
            self,
            self._aboard,
            worker,
            list(infos),
            {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "capacity": self.capacity,
                "checkpoints": [info.model_dump(mode="json") for info in infos.values()],
                "numerics": {name: engine.numerics for name, engine in self._engines.items()},
            },
            lease_ms=settings.lease_ms,
            step_deadline_seconds=settings.step_deadline_seconds,
            crash_reporter=crash_reporter,
            stopped=self.stopped,
        )
        self._loaded: queues.SimpleQueue[LeasedTask] = queues.SimpleQueue()
        self._dropped: queues.SimpleQueue[str | threading.Event] = queues.SimpleQueue()
        self._events: queues.SimpleQueue[Event] = queues.SimpleQueue()
        self._wake = threading.Event()
        store = open_store(settings.store_url)
        self._loader = Loader(
            store,
            Sinks(store, scratch),
            queue,
            self._publisher,
            self._aboard,
            infos,
            loaded=self._take_in,
            report=self._queue_session.report,
        )
        self._failure: Exception | None = None  # what ended another thread
        self._paces: dict[Lane, _Pace] = {}  # main loop only

    @property
    def session(self) -> str:
        """The token of this life; another one after the farm has ended it."""
        return self._queue_session.session

    # The main loop.

    def run(self) -> None:
        """Work until ``stop``; returns when what was leased has gone back.

        Raises:
            Exception: whatever went wrong in one of the threads; the tasks aboard then count as
                aboard at a crash.
        """
        self._queue_session.register()
        self._queue_session.turned()
        for target, name in (
            (self._queue_session.listen, "inbox"),
            (self._queue_session.control, "control"),
            (self._collect, "collect"),
        ):
            threading.Thread(target=self._guarded, args=(target,), name=name, daemon=True).start()
        crashed = True
        try:
            while not self.stopped.is_set():
                self.turn()
            if self._failure is not None:
                raise self._failure
            crashed = False
        finally:
            self.stopped.set()
            try:
                self._queue_session.leave("crash" if crashed else "drain")
            finally:
                self._publisher.close()
                self._loader.close()

    def _guarded(self, target: Callable[[], None]) -> None:
        """A thread that dies takes the worker along: half of one would only hold leases."""
        try:
            target()
        except Exception as error:
            log.critical("%s failed", threading.current_thread().name, exc_info=True)
            self._failure = error
            self.stop()

    def stop(self) -> None:
        """Ask the worker to end; its leases go back to the queue unharmed."""
        self.stopped.set()
        self._wake.set()

    def turn(self) -> None:
        """One pass: take in what was loaded, fill the engines, do one step of each."""
        self._queue_session.turned()
        self._forget()
        for event in drain(self._events):
            self._stored(event)
        for assignment in drain(self._loaded):
            if self._aboard.start(assignment):
                self._take_up(assignment)
        self._fill()
        busy = False
        urgent = any(task.urgent for task in self._aboard.assignments)
        if urgent or self._publisher.pending_bytes < PENDING_BYTES:
            for engine in self._engines.values():
                if not engine.idle:
                    busy = True
                    self._step(engine)
        if not busy:
            self._wake.wait(IDLE_SECONDS)
            self._wake.clear()

    def _take_up(self, assignment: LeasedTask) -> None:
        """What is stored already, and what crashes its worker, is not rendered."""
        for found in assignment.found:
            self._publisher.found_picture(assignment.key, found)
            assignment.stored += 1
            self._handed_over(assignment)
        for render, image in assignment.left_out:
            self._picture_failed(
                assignment,
                render,
                Row(assignment.specs[render], image),
                RenderError("it crashed its worker twice while it ran alone"),
            )

    def _step(self, engine: RenderEngine) -> None:
        started = time.monotonic()
        finished = engine.step()
        seconds = time.monotonic() - started
        running = {
            task.lane
            for task in self._aboard.assignments
            if task.running.total() > 0 and self._engines[task.lane.checkpoint] is engine
        }
        for lane in running:
            self._paces.setdefault(lane, _Pace()).seconds += seconds / len(running)
        for done in finished:
            self._row_done(engine, done)

    def _fill(self) -> None:
        """Add rows while there is room, a share of which is kept for urgent tasks; these first,
        then in the order they came."""
        for assignment in sorted(self._aboard.assignments, key=lambda task: not task.urgent):
            engine = self._engines[assignment.lane.checkpoint]
            kept_free = 0 if assignment.urgent else self._reserve[assignment.lane.checkpoint]
            while engine.room(assignment.lane) > kept_free:
                # Row by row, and none that the queue does not know of: a crash then blames one.
                if assignment.lease.alone and (
                    assignment.running.total() or not self._announced(assignment)
                ):
                    break
                try:
                    ready = assignment.next_row()
                except InputFailed as failure:
                    self._input_failed(assignment, failure)
                    if self._aboard.assignment(assignment.key) is None:
                        break
                    continue
                if ready is None:
                    break
                numbered, row, inputs = ready
                try:
                    engine.add(
                        (assignment.key, numbered.render),
                        row,
                        image=inputs.image,
                        mask=inputs.mask,
                        latents=inputs.latents,
                        embeds=inputs.embeds,
                        urgent=assignment.urgent,
                    )
                except FarmError as error:
                    self._picture_failed(assignment, numbered.render, row, error)
                else:
                    assignment.running[numbered.render] += 1

    def _announced(self, assignment: LeasedTask) -> bool:
        """Whether the queue knows which row runs next."""
        place = assignment.next_place
        if place is None or assignment.told_place == place:
            return True
        if assignment.at_place != place:
            assignment.at_place = place
            self._queue_session.heartbeat_now()
        return False

    def _row_done(self, engine: RenderEngine, done: Any) -> None:
        task_key, render = done.key
        assignment = self._aboard.assignment(task_key)
        if assignment is None:
            return
        assignment.running[render] -= 1
        assignment.at_place = None
        self._paces.setdefault(assignment.lane, _Pace()).row_steps += done.steps
        row = Row(assignment.specs[render], done.index)
        if done.error is not None and done.error.retryable and not assignment.lease.alone:
            # It may do by itself; if not even so, it fails and its neighbours do not.
            self._give_up(assignment, "crash", str(done.error))
            return
        if done.error is not None:
            self._picture_failed(assignment, render, row, done.error)
            return
        record = self._record(assignment, render, row, engine.numerics, done.truncated)
        self._publisher.picture(
            task_key,
            assignment.place,
            record,
            done.pixels,
            done.tokens,
            urgent=assignment.urgent,
        )
        self._handed_over(assignment)

    def _record(
        self,
        assignment: LeasedTask,
        render: int,
        row: Row,
        numerics: str,
        truncated: bool = False,
    ) -> PictureRecord:
        notes = list(assignment.notes.get(render, ()))
        if truncated:
            notes.append("prompt_truncated")
        return PictureRecord(
            job=assignment.lease.job,
            generation=assignment.lease.generation,
            render=render,
            image=row.index,
            spec=row.spec,
            numerics=numerics,
            format=assignment.chunk.format,
            notes=tuple(notes),
        )

    def _input_failed(self, assignment: LeasedTask, failure: InputFailed) -> None:
        if failure.error.retryable:
            self._give_up(assignment, "infra", str(failure.error))
            return
        for row in failure.rows:
            self._picture_failed(assignment, failure.render, row, failure.error)

    def _picture_failed(
        self, assignment: LeasedTask, render: int, row: Row, error: FarmError
    ) -> None:
        numerics = self._engines[assignment.lane.checkpoint].numerics
        record = self._record(assignment, render, row, numerics)
        self._publisher.failed_picture(assignment.key, record, error)
        assignment.failed += 1
        self._handed_over(assignment)

    def _handed_over(self, assignment: LeasedTask) -> None:
        assignment.handed_over += 1
        if assignment.complete:
            self._publisher.finish(assignment.key, assignment.place, assignment.pictures)

    def _give_up(
        self, assignment: LeasedTask, kind: Literal["crash", "infra"], reason: str
    ) -> None:
        """Hand a task back to the queue; nothing more of it is rendered or stored here."""
        self._publisher.drop(assignment.key)
        self._leave_engine(self._aboard.leave(assignment.key)[1])
        self._queue_session.report(Report(assignment.lease, None, kind, reason))

    def _forget(self) -> None:
        for dropped in drain(self._dropped):
            if isinstance(dropped, str):
                self._forget_one(dropped)
            else:
                dropped.set()

    def _forget_one(self, key: str) -> None:
        self._publisher.drop(key)
        self._leave_engine(self._aboard.drop(key))

    def _leave_engine(self, assignment: LeasedTask | None) -> None:
        if assignment is not None and (running := assignment.row_keys):
            self._engines[assignment.lane.checkpoint].cancel(running)

    def _collect(self) -> None:
        while not self.stopped.is_set():
            for event in self._publisher.poll(0.5):
                self._events.put(event)
                self._wake.set()

    def _stored(self, event: Event) -> None:
        if event.kind == "picture":
            if assignment := self._aboard.assignment(event.task_key):
                assignment.stored += 1
            return
        lease, assignment = self._aboard.leave(event.task_key)
        self._leave_engine(assignment)
        if lease is None:
            return
        if event.kind == "finished":
            self._queue_session.report(Report(lease, event.receipt))
        else:
            final = event.error is not None and not event.error.retryable
            self._queue_session.report(
                Report(lease, None, "row" if final else "infra", str(event.error))
            )

    # What the link and the loader call, from threads of their own.

    def accept(self, lease: Lease) -> None:
        """A lease has come aboard."""
        self._loader.load(lease)

    def drop(self, key: str) -> None:
        """A lease is not ours any more."""
        self._dropped.put(key)
        self._wake.set()

    def when_dropped(self) -> threading.Event:
        """Set once everything that was dropped before has left the engines."""
        gone = threading.Event()
        self._dropped.put(gone)
        self._wake.set()
        return gone

    def lease_until(self, leases: set[str], deadline: float) -> None:
        """Nothing of these leases is written after ``deadline``, a time of ``time.monotonic``."""
        for key in leases:
            self._publisher.lease_until(key, deadline)

    def stats(self) -> Mapping[str, Any]:
        """What people who look at the farm, and its planner, should know of the worker."""
        return {
            "lanes": sorted({str(task.lane) for task in self._aboard.assignments}),
            "paces": {
                str(lane): round(pace.row_steps / pace.seconds, 1)
                for lane, pace in dict(self._paces).items()
                if pace.row_steps and pace.seconds
            },
        }

    def _take_in(self, assignment: LeasedTask) -> None:
        self._loaded.put(assignment)
        self._wake.set()


def _load_engine(checkpoint: Checkpoint, settings: WorkerSettings) -> RenderEngine:
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
