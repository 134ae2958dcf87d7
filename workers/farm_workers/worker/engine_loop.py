"""The worker's main loop: fills the engines with rows, steps them, hands on what they finish.

Only this thread touches a device, so a slow server never stops a step.
"""

import collections
import dataclasses
import logging
import queue as queues
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from farm import tracing
from farm.errors import FarmError, RenderError
from farm.formats.picture_file import token_bytes
from farm.formats.token_pictures import TokenPictures
from farm.job import Format
from farm.spec import Lane
from farm_workers.leased_task import LeasedTask, Outcome
from farm_workers.publisher.publisher import Publisher
from farm_workers.render_engine import CONFIDENCE_DIGITS, RenderEngine, RowResult
from farm_workers.worker.lease_table import LeaseTable
from farm_workers.worker.metrics import WorkerMetrics
from farm_workers.worker.previews import PreviewMaker
from farm_workers.worker.task_rows import InputFailed, ReadyRows, TaskRows

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.05  # longest sleep of the loop; a grant wakes it at once
URGENT_SHARE = 8  # one of so many rows of an engine is kept free for urgent tasks
PACED_LANES = 128  # of which a pace is kept: heartbeats tell all of them
PENDING_BYTES = 512 * 2**20  # given to the publisher and not stored; above it the engines wait
URGENT_PENDING_BYTES = 2 * PENDING_BYTES  # while there are urgent rows


@dataclasses.dataclass
class _Pace:
    """The engine time that a lane has had, and what was done in it."""

    row_steps: int = 0
    pictures: int = 0
    seconds: float = 0.0
    worked_at: float = 0.0  # the beginning of the last turn that did


class EngineLoop:
    """One thread calls ``turn`` again and again; ``enqueue``, ``stats`` and ``works_on`` are for
    others.

    Args:
        engines: by the name of their checkpoint.
        rows: how many rows each engine holds when it is full.
    """

    def __init__(
        self,
        engines: Mapping[str, RenderEngine],
        rows: Mapping[str, int],
        leases: LeaseTable,
        publisher: Publisher,
        previews: PreviewMaker,
        metrics: WorkerMetrics,
    ) -> None:
        self.turned_at = time.monotonic()  # the last turn began then
        self._engines = engines
        self._kept_free = {name: count // URGENT_SHARE for name, count in rows.items()}
        self._leases = leases
        self._publisher = publisher
        self._previews = previews
        self._metrics = metrics
        self._loaded: queues.SimpleQueue[TaskRows] = queues.SimpleQueue()
        self._tasks: dict[str, TaskRows] = {}  # at work, by key, in the order they came
        self._paces: dict[Lane, _Pace] = {}

    def enqueue(self, rows: TaskRows) -> None:
        """A task was loaded: start it with the next turn."""
        self._loaded.put(rows)
        self._leases.engines_wanted.set()

    def stats(self) -> Mapping[str, Any]:
        """For people who look at the farm, and for its planner: lanes, row-steps per second and
        row-steps per picture."""
        paces = {str(lane): pace for lane, pace in dict(self._paces).items() if pace.pictures}
        return {
            "measures": self._metrics.snapshot(),
            "lanes": sorted({str(rows.lane) for rows in list(self._tasks.values())}),
            "paces": {
                lane: round(pace.row_steps / pace.seconds, 1)
                for lane, pace in paces.items()
                if pace.row_steps and pace.seconds
            },
            "row_steps": {
                lane: round(pace.row_steps / pace.pictures, 1) for lane, pace in paces.items()
            },
        }

    def works_on(self, task: LeasedTask) -> bool:
        """Whether rows of this lease may be in an engine."""
        rows = self._tasks.get(task.key)
        return rows is not None and rows.task is task

    def turn(self) -> None:
        """One pass: start what was loaded, fill the engines, do one step of each."""
        self.turned_at = time.monotonic()
        self._start_loaded()
        self._fill()
        busy = False
        # A task stays until it is stored: only what is still to be drawn may take more room.
        urgent = any(rows.task.urgent and rows.task.to_render for rows in self._tasks.values())
        room = URGENT_PENDING_BYTES if urgent else PENDING_BYTES
        if self._publisher.pending_bytes < room and not self._leases.expired:
            for engine in self._engines.values():
                if not engine.idle:
                    busy = True
                    self._step(engine)
        self._previews.make(self._tasks.values(), self._engines)
        if not busy:
            self._leases.engines_wanted.wait(IDLE_SECONDS)
            self._leases.engines_wanted.clear()

    # What comes and goes.

    def _start_loaded(self) -> None:
        loaded = []
        while not self._loaded.empty():
            loaded.append(self._loaded.get())
        # Only now: what is loaded may be the successor of a lease that was dropped. Its rows have
        # the same keys in the engine, so those of the dropped one must have left first.
        for rows in list(self._tasks.values()):
            if not self._leases.holds(rows.task):
                self._leave_engine(rows)
        for rows in loaded:
            if self._leases.holds(rows.task):
                self._start(rows)

    def _start(self, rows: TaskRows) -> None:
        """What is stored already, and what crashes its worker, is not rendered."""
        rows.task.place = rows.place
        self._tasks[rows.task.key] = rows
        for found in rows.found:
            self._publisher.known_picture(rows.task, found)
        for render, image in rows.left_out:
            error = RenderError("it crashed its worker twice while it ran alone")
            self._picture_failed(rows, render, image, error)

    def _leave_engine(self, rows: TaskRows) -> None:
        del self._tasks[rows.task.key]
        if running := rows.running_keys:
            self._engines[rows.lane.checkpoint].cancel(running)

    def _give_up(self, rows: TaskRows, kind: Literal["crash", "infra"], reason: str) -> None:
        """Hand a task back to the queue; nothing more of it is rendered or stored here."""
        self._publisher.drop(rows.task)
        self._leave_engine(rows)
        self._leases.end(rows.task, Outcome(None, kind, reason))

    # Into the engines.

    def _fill(self) -> None:
        """Add rows while there is room, a share of which is kept for urgent tasks.

        Urgent tasks come first, then the others in the order they came.
        """
        for rows in sorted(self._tasks.values(), key=lambda rows: not rows.task.urgent):
            name = rows.lane.checkpoint
            engine = self._engines[name]
            kept_free = 0 if rows.task.urgent else self._kept_free[name]
            while (room := engine.room(rows.lane) - kept_free) > 0:
                if not self._add_next(engine, rows, room):
                    break

    def _add_next(self, engine: RenderEngine, rows: TaskRows, room: int) -> bool:
        """Add the next rows of a task, so many at most; False if none can start now."""
        if rows.task.halted:
            return False
        if rows.task.lease.alone and (rows.running or not self._announced(rows)):
            return False
        try:
            ready = rows.take(1 if rows.task.lease.alone else room)
        except InputFailed as failure:
            self._input_failed(rows, failure)
            return rows.task.key in self._tasks
        if not ready.rows:
            return False
        # Before the look: what hands it back waits for these rows from now on.
        rows.task.begun = True
        if rows.task.halted:
            return False
        self._add(engine, rows, ready)
        return True

    def _add(self, engine: RenderEngine, rows: TaskRows, ready: ReadyRows) -> None:
        task, pixels = rows.task, rows.place.format is not Format.TOKENS
        given = {**ready.inputs.given, "urgent": task.urgent, "pixels": pixels}
        for render, row in ready.rows:
            try:
                engine.add((task.key, render), row, **given)
            except FarmError as error:
                self._picture_failed(rows, render, row.index, error)
            else:
                rows.running[render, row.index] = self.turned_at

    def _announced(self, rows: TaskRows) -> bool:
        """Whether the queue knows which row runs next: a crash then blames that one alone."""
        number = rows.next_number
        if number is None or rows.task.announced_row == number:
            return True
        self._leases.announce(rows.task, number)
        return False

    def _input_failed(self, rows: TaskRows, failure: InputFailed) -> None:
        if failure.error.retryable:
            self._give_up(rows, "infra", str(failure.error))
            return
        for render, row in failure.rows:
            self._picture_failed(rows, render, row.index, failure.error)

    # Out of the engines.

    def _step(self, engine: RenderEngine) -> None:
        started = time.monotonic()
        results = engine.step()
        seconds = time.monotonic() - started
        lanes: collections.Counter[Lane] = collections.Counter()
        tenants: collections.Counter[str] = collections.Counter()
        for rows in self._tasks.values():
            if rows.running and self._engines[rows.lane.checkpoint] is engine:
                lanes[rows.lane] += len(rows.running)
                tenants[rows.tenant] += len(rows.running)
        for lane in lanes:
            self._pace(lane).seconds += seconds / len(lanes)
        self._metrics.stepped(seconds, lanes, tenants)
        finished: dict[str, list[RowResult]] = {}
        for result in results:
            finished.setdefault(result.key[0], []).append(result)
        for key, of_task in finished.items():
            if key in self._tasks:
                self._rows_finished(self._tasks[key], of_task)

    def _rows_finished(self, rows: TaskRows, results: Sequence[RowResult]) -> None:
        """Rows of one task have left their engine."""
        rows.task.next_row = None
        self._measure(rows, results)
        for result in results:
            if result.error is not None and not self._row_failed(rows, result, result.error):
                return
        made = [result for result in results if result.error is None]
        if not rows.tokens_alone:
            self._hand_over(rows, made)
        elif made:
            self._publisher.tokens(rows.task, _token_pictures(rows, made))

    def _row_failed(self, rows: TaskRows, result: RowResult, error: FarmError) -> bool:
        """Returns whether its task goes on."""
        if error.retryable and not rows.task.lease.alone:
            # Alone it may succeed; if it does not, it fails and its neighbours do not.
            self._give_up(rows, "crash", str(error))
            return False
        self._picture_failed(rows, result.key[1], result.index, error)
        return True

    def _hand_over(self, rows: TaskRows, made: Sequence[RowResult]) -> None:
        for result in made:
            render = result.key[1]
            notes = rows.notes(render, truncated=result.truncated)
            confidence = round(result.confidence, CONFIDENCE_DIGITS)
            record = rows.record(render, result.index, result.numerics, notes, confidence)
            assert result.tokens is not None
            self._publisher.picture(rows.task, record, result.pixels, result.tokens)

    def _measure(self, rows: TaskRows, results: Sequence[RowResult]) -> None:
        now = time.monotonic()
        seconds = [
            now - rows.running.pop((result.key[1], result.index), self.turned_at)
            for result in results
        ]
        steps = sum(result.steps for result in results)
        failed = sum(result.error is not None for result in results)
        pace = self._pace(rows.lane)
        pace.row_steps += steps
        pace.pictures += len(results)
        self._metrics.rows_ended(rows.lane, steps, seconds, failed)
        if tracing.active():
            job, lease = rows.task.lease.job, rows.task.lease_name
            for result, since in zip(results, seconds, strict=True):
                facts = {"render": result.key[1], "image": result.index, "steps": result.steps}
                tracing.in_task("render", job, lease, since, **facts)

    def _pace(self, lane: Lane) -> _Pace:
        """That of a lane which is worked for now. Pictures of users have as many sizes as they
        like, and a worker lives for months, so the lane that was longest without work goes."""
        # None ever leaves to stand elsewhere: ``stats`` looks from another thread.
        if lane not in self._paces and len(self._paces) >= PACED_LANES:
            del self._paces[min(self._paces, key=lambda old: self._paces[old].worked_at)]
        pace = self._paces.setdefault(lane, _Pace())
        pace.worked_at = self.turned_at
        return pace

    def _picture_failed(self, rows: TaskRows, render: int, image: int, error: FarmError) -> None:
        numerics = self._engines[rows.lane.checkpoint].numerics
        where = f"picture {image} of render {render}"
        facts = {"job": rows.task.lease.job, "task": rows.task.key}
        log.warning("task %s: %s failed: %s", rows.task.key, where, error, extra=facts)
        record = rows.record(render, image, numerics, rows.notes(render))
        self._publisher.failed_picture(rows.task, record, error)


def _token_pictures(rows: TaskRows, made: Sequence[RowResult]) -> TokenPictures:
    return TokenPictures(
        rows.chunk,
        pictures=[(one.key[1], one.index) for one in made],
        tokens=[token_bytes(one.tokens) for one in made if one.tokens is not None],
        numerics=[one.numerics for one in made],
        notes=[rows.notes(one.key[1], truncated=one.truncated) for one in made],
        confidence=[round(one.confidence, CONFIDENCE_DIGITS) for one in made],
    )
