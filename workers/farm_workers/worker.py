"""The worker: leases tasks, drives the engines, hands pictures to the publisher, reports back.

Four threads share one lock: the main loop owns the engines and every ``Assignment``; the inbox
thread waits for grants; the control thread sends beats and reports; the publisher's thread turns
what was stored into reports. Only the main loop touches a device, so a slow server never stops
a step.
"""

import contextlib
import dataclasses
import logging
import os
import queue as queues
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from farm.checkpoint import Checkpoint, inspect_checkpoint
from farm.errors import (
    FarmError,
    InvalidInput,
    LeaseLost,
    NotFound,
    RenderError,
    StoreError,
    Unavailable,
)
from farm.job import Chunk, Lease, Priority, Receipt
from farm.manifest import ManifestRow, pictures_to_make
from farm.queue import Progress, Queue, connect
from farm.spec import Lane, Mode, Row
from farm.store import Store, keys, open_store
from farm_workers.assignment import Assignment, InputFailed
from farm_workers.faults import FaultyEngine
from farm_workers.inputs import InputReader
from farm_workers.load import load_engine
from farm_workers.publisher import Event, Publisher
from farm_workers.recall import earlier_receipt, rows_of, stored_pictures
from farm_workers.record import PictureRecord
from farm_workers.settings import WorkerSettings

log = logging.getLogger(__name__)

T = TypeVar("T")

BEAT_SECONDS = 1.0
EARLY_BEAT_SECONDS = 0.1  # where a quarter of the worker has become free since the last beat
HUNGRY_SECONDS = 1.0  # without a grant, then the worker leases for itself
IDLE_SECONDS = 0.05  # longest sleep of the main loop; a grant wakes it at once
URGENT_SHARE = 8  # one of so many rows of an engine is kept free for urgent tasks
LOADERS = 4  # threads that read chunks and input files, for urgent tasks and for the others
BUFFERED_ENGINES = 3  # rows held, in engines' worth: one runs, the others are ready to follow
PENDING_BYTES = 512 * 2**20  # given to the publisher and not stored; above it the engines wait
STORE_PATIENCE_SECONDS = 120.0
FROZEN_EXIT = 70  # EX_SOFTWARE: whoever placed the worker starts it again


class RenderEngine(Protocol):
    """The part of ``Engine`` that a worker uses."""

    numerics: str

    @property
    def idle(self) -> bool: ...
    def room(self, lane: Lane) -> int: ...
    def add(self, key: Any, row: Row, **inputs: Any) -> None: ...
    def step(self) -> Sequence[Any]: ...
    def cancel(self, keys: Any) -> None: ...


class _Report(NamedTuple):
    """What the control thread still has to tell the queue about a lease."""

    lease: Lease
    receipt: Receipt | None
    kind: str = ""
    reason: str = ""


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
    """

    def __init__(
        self,
        settings: WorkerSettings,
        worker: str,
        *,
        load_engine: Callable[[Checkpoint, WorkerSettings], RenderEngine] | None = None,
    ) -> None:
        self.settings = settings
        self.worker = worker
        self.session = secrets.token_hex(16)
        self.stopped = threading.Event()
        self._queue = Queue(connect(settings.redis_url), farm=settings.name)
        self._store: Store = open_store(settings.store_url)
        found = [inspect_checkpoint(name) for name in settings.checkpoints]
        self._infos = {checkpoint.info.name: checkpoint.info for checkpoint in found}
        load = load_engine or _load_engine
        self._engines: dict[str, RenderEngine] = {
            checkpoint.info.name: load(checkpoint, settings) for checkpoint in found
        }
        if settings.faults:
            self._engines = {
                name: FaultyEngine(engine, settings.faults)
                for name, engine in self._engines.items()
            }
        rows = {
            name: self._engines[name].room(
                Lane(name, Mode.TEXT2IMG, info.native_height, info.native_width)
            )
            for name, info in self._infos.items()
        }
        self.capacity = BUFFERED_ENGINES * sum(rows.values())
        self._reserve = {name: count // URGENT_SHARE for name, count in rows.items()}
        self._publisher = Publisher(settings.store_url)
        # Whoever looks at a screen does not queue behind a dataset's files.
        self._loaders = {
            urgent: ThreadPoolExecutor(LOADERS, thread_name_prefix="load")
            for urgent in (True, False)
        }
        self._inputs = InputReader(
            lambda tenant, asset: self._read(keys.asset(tenant, asset)), self._infos
        )
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._assignments: dict[str, Assignment] = {}  # main loop only; others read under the lock
        self._arrived: dict[str, Lease] = {}  # leased, not yet an assignment
        self._loaded: queues.SimpleQueue[Assignment] = queues.SimpleQueue()
        self._dropped: queues.SimpleQueue[str | threading.Event] = queues.SimpleQueue()
        self._events: queues.SimpleQueue[Event] = queues.SimpleQueue()
        self._failure: Exception | None = None  # what ended another thread
        self._finishing: dict[str, Lease] = {}  # with the publisher or on the way to the queue
        self._reports: queues.SimpleQueue[_Report] = queues.SimpleQueue()
        self._report_ready = threading.Event()
        self._beat_wanted = threading.Event()
        self._unknown: set[str] = set()  # held by the session, not by us, at the last beat
        self._last_grant = time.monotonic()
        self._turned = time.monotonic()
        self._paces: dict[Lane, _Pace] = {}  # main loop only
        self._beats = 0
        self._room_told = 0
        self._draining = False

    # The main loop.

    def run(self) -> None:
        """Work until ``stop``; returns when what was leased has gone back.

        Raises:
            Exception: whatever went wrong in one of the threads; the tasks aboard then count as
                aboard at a crash.
        """
        self._register()
        self._turned = time.monotonic()
        for target in (self._listen, self._control, self._collect):
            name = target.__name__.strip("_")
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
            self._leave("crash" if crashed else "drain")

    def _guarded(self, target: Callable[[], None]) -> None:
        """A thread that dies takes the worker along: half of one would only hold leases."""
        try:
            target()
        except Exception as error:
            log.critical("%s failed", target.__name__, exc_info=True)
            self._failure = error
            self.stop()

    def stop(self) -> None:
        """Ask the worker to end; its leases go back to the queue unharmed."""
        self.stopped.set()
        self._wake.set()

    def turn(self) -> None:
        """One pass: take in what was loaded, fill the engines, do one step of each."""
        self._turned = time.monotonic()
        self._forget()
        for event in _all_of(self._events):
            self._stored(event)
        for assignment in _all_of(self._loaded):
            with self._lock:
                # Dropped and granted again meanwhile, it is another lease, loaded by itself.
                if self._arrived.get(assignment.key) is not assignment.lease:
                    continue
                del self._arrived[assignment.key]
                self._assignments[assignment.key] = assignment
            self._take_up(assignment)
        self._fill()
        busy = False
        urgent = any(task.urgent for task in self._assignments.values())
        if urgent or self._publisher.pending_bytes < PENDING_BYTES:
            for engine in self._engines.values():
                if not engine.idle:
                    busy = True
                    self._step(engine)
        if not busy:
            self._wake.wait(IDLE_SECONDS)
            self._wake.clear()

    def _take_up(self, assignment: Assignment) -> None:
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
            for task in self._assignments.values()
            if task.running.total() > 0 and self._engines[task.lane.checkpoint] is engine
        }
        for lane in running:
            self._paces.setdefault(lane, _Pace()).seconds += seconds / len(running)
        for done in finished:
            self._row_done(engine, done)

    def _fill(self) -> None:
        """Add rows while there is room, a share of which is kept for urgent tasks; these first,
        then in the order they came."""
        for assignment in sorted(self._assignments.values(), key=lambda task: not task.urgent):
            engine = self._engines[assignment.lane.checkpoint]
            kept_free = 0 if assignment.urgent else self._reserve[assignment.lane.checkpoint]
            while engine.room(assignment.lane) > kept_free:
                if assignment.lease.alone and assignment.running.total():
                    break  # row by row: a crash then blames one
                try:
                    ready = assignment.next_row()
                except InputFailed as failure:
                    self._input_failed(assignment, failure)
                    if assignment.key not in self._assignments:
                        break
                    continue
                if ready is None:
                    break
                numbered, row, inputs = ready
                if assignment.lease.alone and not self._announced(
                    assignment, assignment.places[numbered.render, row.index]
                ):
                    assignment.put_back(ready)
                    break
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

    def _announced(self, assignment: Assignment, place: int) -> bool:
        """Whether the queue knows which row runs next: if it crashes, that one is blamed."""
        if assignment.told_place == place:
            return True
        if assignment.at_place != place:
            assignment.at_place = place
            self._beat_wanted.set()
            self._report_ready.set()
        return False

    def _row_done(self, engine: RenderEngine, done: Any) -> None:
        task_key, render = done.key
        assignment = self._assignments.get(task_key)
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
            keys.picture(
                assignment.lease.job,
                assignment.lease.generation,
                render,
                done.index,
                assignment.chunk.format,
            ),
            record,
            done.pixels,
            done.tokens,
            urgent=assignment.urgent,
        )
        self._handed_over(assignment)

    def _record(
        self,
        assignment: Assignment,
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

    def _input_failed(self, assignment: Assignment, failure: InputFailed) -> None:
        if failure.error.retryable:
            self._give_up(assignment, "infra", str(failure.error))
            return
        for row in assignment.rows(failure.numbered):
            self._picture_failed(assignment, failure.numbered.render, row, failure.error)

    def _picture_failed(
        self, assignment: Assignment, render: int, row: Row, error: FarmError
    ) -> None:
        numerics = self._engines[assignment.lane.checkpoint].numerics
        record = self._record(assignment, render, row, numerics)
        self._publisher.failed_picture(assignment.key, record, error)
        assignment.failed += 1
        self._handed_over(assignment)

    def _handed_over(self, assignment: Assignment) -> None:
        assignment.handed_over += 1
        if assignment.complete:
            lease = assignment.lease
            self._publisher.finish(
                assignment.key,
                keys.part(lease.job, lease.generation, lease.number),
                assignment.pictures,
            )

    def _give_up(self, assignment: Assignment, kind: str, reason: str) -> None:
        """Hand a task back to the queue; nothing more of it is rendered or stored here."""
        self._forget_one(assignment.key)
        self._report(_Report(assignment.lease, None, kind, reason))

    def _forget(self) -> None:
        for dropped in _all_of(self._dropped):
            if isinstance(dropped, str):
                self._forget_one(dropped)
            else:
                dropped.set()

    def _forget_one(self, key: str) -> None:
        self._publisher.drop(key)
        with self._lock:
            self._arrived.pop(key, None)
            self._finishing.pop(key, None)
        self._end_assignment(key)

    def _end_assignment(self, key: str) -> None:
        with self._lock:
            assignment = self._assignments.pop(key, None)
        if assignment is not None and (running := assignment.row_keys):
            self._engines[assignment.lane.checkpoint].cancel(running)

    # Grants.

    def _listen(self) -> None:
        while not self.stopped.is_set():
            with self._patience("inbox"):
                for lease in self._queue.inbox(self.session, 1.0):
                    self._accept(lease)

    def _accept(self, lease: Lease) -> None:
        self._last_grant = time.monotonic()
        with self._lock:
            known = (
                lease.key in self._arrived
                or lease.key in self._assignments
                or lease.key in self._finishing
            )
            if known:
                return
            self._arrived[lease.key] = lease
        self._loaders[lease.priority is Priority.URGENT].submit(self._load, lease)

    def _load(self, lease: Lease) -> None:
        """Bring a lease's content in; a loader's thread."""
        self._publisher.lease_until(lease.key, time.monotonic() + self.settings.lease_ms / 1000)
        try:
            if lease.finalise:
                self._finalise(lease)
                return
            text = lease.inline or self._read(keys.chunk(lease.job, lease.number)).decode()
            chunk = Chunk.model_validate_json(text)
            if Lane.parse(chunk.lane).checkpoint not in self._engines:
                raise InvalidInput(f"this worker does not hold the checkpoint of {chunk.lane}")
            executor = self._loaders[lease.priority is Priority.URGENT]
            found: list[ManifestRow] = []
            wanted = self._wanted(lease, chunk)
            if lease.attempt > 1:
                if (receipt := earlier_receipt(self._read, lease)) is not None:
                    self._stored_before(lease, receipt)
                    return
                rows = set(rows_of(chunk)) if wanted is None else wanted
                found = stored_pictures(self._store, self._read, lease, chunk, rows)
            self._loaded.put(Assignment(lease, chunk, self._inputs, executor, wanted, found))
            self._wake.set()
        except Exception as error:
            log.warning("task %s cannot be loaded: %s", lease.key, error)
            self._publisher.drop(lease.key)
            with self._lock:
                self._arrived.pop(lease.key, None)
                self._finishing[lease.key] = lease
            self._report(_Report(lease, None, "infra", f"its chunk cannot be read: {error}"))

    def _stored_before(self, lease: Lease, receipt: Receipt) -> None:
        """An earlier life stored everything; only the queue has not heard of it."""
        self._publisher.drop(lease.key)
        with self._lock:
            self._arrived.pop(lease.key, None)
            self._finishing[lease.key] = lease
        self._report(_Report(lease, receipt))

    def _wanted(self, lease: Lease, chunk: Chunk) -> set[tuple[int, int]] | None:
        """Of a retried task, what its earlier generations have not made; else None, for all."""
        if lease.generation == 0 or lease.pictures == chunk.pictures:
            return None
        wanted = pictures_to_make(self._store, chunk, lease.generation)
        if len(wanted) != lease.pictures:
            raise StoreError(
                f"{len(wanted)} of its pictures have no file; the queue knows of {lease.pictures}"
            )
        return wanted

    def _finalise(self, lease: Lease) -> None:
        with self._lock:
            self._arrived.pop(lease.key, None)
            self._finishing[lease.key] = lease
        receipts: list[Receipt] = []
        failed: dict[int, int] = {}  # by task: a newer generation has tried its failures again
        after = 0
        while found := self._queue.finished(lease.job, after):
            receipts += (finished.receipt for finished in found)
            failed |= {finished.number: finished.receipt.failed for finished in found}
            after = found[-1].position
        self._publisher.finalise(
            lease.key,
            lease.job,
            lease.generation,
            [(receipt.part, receipt.part_sha256) for receipt in receipts],
            {
                "done": sum(receipt.done for receipt in receipts),
                "failed": sum(failed.values()),
            },
        )

    def _read(self, key: str) -> bytes:
        """An object's bytes, with patience for a store that does not answer for a while."""
        deadline = time.monotonic() + STORE_PATIENCE_SECONDS
        delay = 0.1
        while True:
            try:
                return self._store.get(key)
            except StoreError:
                if time.monotonic() > deadline or self.stopped.is_set():
                    raise
            time.sleep(delay * random.random())
            delay = min(delay * 2, 10.0)

    # What was stored.

    def _collect(self) -> None:
        while not self.stopped.is_set():
            for event in self._publisher.poll(0.5):
                self._events.put(event)
                self._wake.set()

    def _stored(self, event: Event) -> None:
        assignment = self._assignments.get(event.task_key)
        if event.kind == "picture":
            if assignment is not None:
                assignment.stored += 1
            return
        with self._lock:
            lease = assignment.lease if assignment else self._finishing.get(event.task_key)
            if lease is None:
                return
            self._finishing[event.task_key] = lease
        self._end_assignment(event.task_key)
        if event.kind == "finished":
            self._report(_Report(lease, event.receipt))
        elif event.kind == "failed":
            final = event.error is not None and not event.error.retryable
            self._report(_Report(lease, None, "row" if final else "infra", str(event.error)))

    # Reports and beats.

    def _report(self, report: _Report) -> None:
        self._reports.put(report)
        self._report_ready.set()

    def _control(self) -> None:
        next_beat = last_beat = 0.0
        while not self.stopped.is_set():
            self._report_ready.wait(max(next_beat - time.monotonic(), 0.0))
            self._report_ready.clear()
            self._send_reports()
            if self._room() - self._room_told > self.capacity // 4:
                next_beat = min(next_beat, last_beat + EARLY_BEAT_SECONDS)
            if time.monotonic() >= next_beat or self._beat_wanted.is_set():
                self._beat_wanted.clear()
                last_beat = time.monotonic()
                next_beat = last_beat + BEAT_SECONDS
                self._watch()
                with self._patience("beat"):
                    try:
                        self._beat()
                    except LeaseLost:
                        self._start_over()

    def _send_reports(self) -> None:
        while True:
            try:
                report = self._reports.get_nowait()
            except queues.Empty:
                return
            while not self.stopped.is_set():
                with self._patience("report"):
                    self._send(report)
                    break

    def _send(self, report: _Report) -> None:
        try:
            if report.receipt is not None:
                outcome = self._queue.complete(self.session, report.lease, report.receipt)
                log.info("task %s: %s", report.lease.key, outcome.verdict)
            else:
                self._queue.fail(self.session, report.lease, report.kind, report.reason)
                log.warning("task %s: %s, %s", report.lease.key, report.kind, report.reason)
        except (NotFound, InvalidInput, LeaseLost) as error:  # an answer too: the task is not ours
            log.error("task %s: %s", report.lease.key, error)
        with self._lock:
            self._finishing.pop(report.lease.key, None)

    def _beat(self) -> None:
        with self._lock:
            progress = {
                key: Progress(assignment.stored, assignment.failed, assignment.at_place)
                for key, assignment in self._assignments.items()
            }
            ours = set(progress) | set(self._arrived) | set(self._finishing)
        room = self._room_told = self._room()
        stats = self._stats()
        sent = time.monotonic()
        beat = self._queue.beat(self.session, room, progress, stats, self.settings.lease_ms)
        for key in beat.held & ours:
            self._publisher.lease_until(key, sent + self.settings.lease_ms / 1000)
        with self._lock:
            for key in progress.keys() & self._assignments.keys():
                if progress[key].row is not None:
                    self._assignments[key].told_place = progress[key].row
                    self._wake.set()
        for key in beat.cancelled | (set(progress) - beat.held):
            self._drop(key)
        unknown = beat.held - ours - beat.cancelled
        if unknown & self._unknown:
            for lease in self._queue.held(self.session):
                self._accept(lease)
        self._unknown = unknown
        self._draining = beat.command == "drain"
        hungry = time.monotonic() - self._last_grant > HUNGRY_SECONDS
        if hungry:  # no scheduler answers, so the worker keeps the queue's time as well
            self._queue.tick()
            if room:
                self._queue.lease(self.session, None, room, self.settings.lease_ms)
            elif urgent := stats["urgent_room"]:
                self._queue.lease(
                    self.session, None, urgent, self.settings.lease_ms, lowest=Priority.URGENT
                )

    def _start_over(self) -> None:
        """The farm has ended this session: drop everything and begin a new one."""
        log.warning("session %s was ended by the farm; starting a new one", self.session)
        with self._lock:
            ours = {*self._assignments, *self._arrived, *self._finishing}
        for key in ours:
            self._drop(key)
        # The same task may come back under the new session: first the old one must be gone.
        forgotten = threading.Event()
        self._dropped.put(forgotten)
        self._wake.set()
        while not forgotten.wait(BEAT_SECONDS) and not self.stopped.is_set():
            self._watch()
        self._draining = False
        self.session = secrets.token_hex(16)
        self._register()

    def _room(self) -> int:
        """Pictures that could be granted now."""
        if self._draining:
            return 0
        with self._lock:
            outstanding = sum(
                task.pictures - task.handed_over for task in self._assignments.values()
            ) + sum(lease.pictures for lease in self._arrived.values())
        return max(self.capacity - outstanding, 0)

    def _drop(self, key: str) -> None:
        self._dropped.put(key)
        self._wake.set()

    def _stats(self) -> Mapping[str, Any]:
        paces = dict(self._paces)
        with self._lock:
            lanes = {str(task.lane) for task in self._assignments.values()}
            urgent = sum(
                task.pictures - task.handed_over
                for task in self._assignments.values()
                if task.urgent
            ) + sum(
                lease.pictures
                for lease in self._arrived.values()
                if lease.priority is Priority.URGENT
            )
        self._beats += 1
        return {
            "beat": self._beats,
            "urgent_room": 0 if self._draining else max(self.capacity - urgent, 0),
            "lanes": sorted(lanes),
            "paces": {
                str(lane): round(pace.row_steps / pace.seconds, 1)
                for lane, pace in paces.items()
                if pace.row_steps and pace.seconds
            },
        }

    def _watch(self) -> None:
        """End a process whose main loop stands still: its leases are worth more than its state."""
        still = time.monotonic() - self._turned
        if still > self.settings.step_deadline_seconds:
            log.critical("no step for %.0f s; the worker ends itself", still)
            with contextlib.suppress(FarmError):
                self._queue.end(self.session, "crash")
            os._exit(FROZEN_EXIT)

    def _register(self) -> None:
        info = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "capacity": self.capacity,
            "checkpoints": [info.model_dump(mode="json") for info in self._infos.values()],
            "numerics": {name: engine.numerics for name, engine in self._engines.items()},
        }
        while not self.stopped.is_set():
            with self._patience("register"):
                self._queue.register(self.session, self.worker, list(self._infos), info)
                return

    def _leave(self, why: Literal["crash", "drain"]) -> None:
        try:
            self._queue.end(self.session, why)
        except FarmError as error:
            log.warning("the queue was not told of the end: %s", error)
        finally:
            self._publisher.close()
            for loaders in self._loaders.values():
                loaders.shutdown(wait=False, cancel_futures=True)

    @contextlib.contextmanager
    def _patience(self, what: str) -> Any:
        """A server that is away is waited for; work that is aboard goes on meanwhile."""
        try:
            yield
        except Unavailable as error:
            log.warning("%s: %s; trying again", what, error)
            self.stopped.wait(0.1 + 0.4 * random.random())


def _all_of(held: "queues.SimpleQueue[T]") -> Iterator[T]:
    """What is in a queue now."""
    with contextlib.suppress(queues.Empty):
        while True:
            yield held.get_nowait()


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
