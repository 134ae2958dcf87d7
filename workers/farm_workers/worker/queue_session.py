"""A worker's session with the queue: it registers, takes grants, sends heartbeats and reports."""

import contextlib
import logging
import math
import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from farm import tracing
from farm.awake_clock import Stillness
from farm.errors import FarmError, InvalidInput, LeaseLost, NotFound, Unavailable
from farm.job import Lease, Priority, Receipt
from farm.queue import Command, Queue
from farm.queue.connection import MAX_BLOCK_SECONDS, cut_off
from farm.queue.constants import MAX_ROWS
from farm.queue.worker_sessions import FIRST_LEASE_MS
from farm_workers.leased_task import LeasedTask, Outcome
from farm_workers.publisher.publisher import Publisher
from farm_workers.worker.crash_reporter import CrashReporter
from farm_workers.worker.engine_loop import EngineLoop
from farm_workers.worker.hand_back import HandBack
from farm_workers.worker.lease_table import LeaseTable

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 1.0
EARLY_HEARTBEAT_SECONDS = 0.1  # if a quarter of the worker has become free since the last one
HUNGRY_SECONDS = 1.0  # without a grant, then the worker leases for itself if the queue asks it to
STORING_SECONDS = 60.0  # at the end of a drain, for what is made and not stored yet
DRAIN_LOOK_SECONDS = 0.1
FROZEN_EXIT = 70  # EX_SOFTWARE: what placed the worker starts it again

Ended = list[tuple[LeasedTask, Outcome]]


class _Drain(NamedTuple):
    """The worker takes nothing more."""

    deadline: float  # of ``time.monotonic``; then what is not done goes back
    ends: bool  # the worker, afterwards; otherwise it stays, until it is told to work again


class QueueSession:
    """Owns the session; ``listen`` and ``control`` are the loops of two threads of the worker.

    Args:
        on_lease: called with each lease that was granted.
        name: of the worker, unique in the farm.
        checkpoints, info: what the session is registered with.
        crash_reporter: told of every session that begins, so that it can report how it ended.
        stopped: ends the loops.
    """

    def __init__(
        self,
        queue: Queue,
        leases: LeaseTable,
        engine_loop: EngineLoop,
        publisher: Publisher,
        on_lease: Callable[[LeasedTask], None],
        name: str,
        checkpoints: Sequence[str],
        info: Mapping[str, Any],
        *,
        lease_ms: int,
        step_deadline_seconds: float,
        crash_reporter: CrashReporter | None,
        stopped: threading.Event,
    ) -> None:
        self.token = secrets.token_hex(16)
        self._queue = queue
        self._leases = leases
        self._engine_loop = engine_loop
        self._publisher = publisher
        self._on_lease = on_lease
        self._name = name
        self._checkpoints = list(checkpoints)
        self._info = info
        self._lease_ms = lease_ms
        self._step_deadline_seconds = step_deadline_seconds
        self._crash_reporter = crash_reporter
        self._stopped = stopped
        self._ended = threading.Event()
        self._unknown: set[str] = set()  # held by the session, not by us, at the last heartbeat
        self._last_grant = time.monotonic()
        self._heartbeats = 0
        self._room_told = 0  # pictures, less what was granted since: what the queue knows
        self._leaving: _Drain | None = None  # set by ``drain``, for good
        self._ordered: _Drain | None = None  # by the session's command, which may be taken back
        self._sharing: str | None = None  # the command that it obeys
        self._told_drain = False  # the queue knows that this session gets no more
        self._hand_back = HandBack(leases, engine_loop, publisher)
        self._still_for = Stillness()  # a container that was frozen did not hang

    def register(self) -> None:
        """Begin a session; waits for a server that does not answer."""
        if self._crash_reporter is not None:
            self._crash_reporter.follow(self.token)
        while not self._stopped.is_set():
            with self._patience("register"):
                sent = time.monotonic()
                self._queue.register(self.token, self._name, self._checkpoints, self._info)
                self._leases.lease_end = sent + FIRST_LEASE_MS / 1000
                return

    def leave(self, why: Literal["crash", "drain"]) -> None:
        """End the session; what it holds goes back to the queue."""
        self._ended.set()
        try:
            self._queue.end(self.token, why)
        except FarmError as error:
            log.warning("the queue was not told of the end: %s", error)
            if self._crash_reporter is not None and why == "crash":
                self._crash_reporter.report_crash()
        else:
            if self._crash_reporter is not None:
                self._crash_reporter.stop()

    def drain(self, seconds: float) -> None:
        """Take no more work, hand back what is not done in that time, and end the worker."""
        self._leaving = _Drain(time.monotonic() + seconds, ends=True)
        self._leases.queue_wanted.set()

    @property
    def _drain(self) -> _Drain | None:
        return self._leaving or self._ordered

    # Grants.

    def listen(self) -> None:
        """Take what is granted, until ``stopped``."""
        while not self._stopped.is_set():
            with self._patience("inbox"):
                for lease in self._queue.inbox(self.token, MAX_BLOCK_SECONDS):
                    self._take(lease)

    def _take(self, lease: Lease) -> None:
        self._last_grant = time.monotonic()
        self._room_told -= lease.pictures
        task = self._leases.add(lease)
        if task is not None:
            what = f"{lease.pictures} of {lease.lane}" if lease.lane else "finalises its job"
            log.info("task %s begins: %s", lease.key, what, extra=self._facts(lease))
            self._publisher.lease_until(task, self._leases.lease_end)
            self._on_lease(task)

    def _facts(self, lease: Lease) -> dict[str, str]:
        """Of a line in the log."""
        return {
            "job": lease.job, "task": lease.key, "worker": self._name, "session": self.token,
        }  # fmt: skip

    # Reports and heartbeats.

    def control(self) -> None:
        """Report and send heartbeats until ``stopped``; then watch the main loop until it ends."""
        next_heartbeat = last_heartbeat = 0.0
        while not self._stopped.is_set():
            handing_back = self._drain is not None or self._hand_back.pending
            look = DRAIN_LOOK_SECONDS if handing_back else HEARTBEAT_SECONDS
            self._leases.queue_wanted.wait(min(max(next_heartbeat - time.monotonic(), 0.0), look))
            self._leases.queue_wanted.clear()
            if (drain := self._drain) is not None:
                self._go_on_draining(drain)
            self._hand_back.release()
            self._report_ended()
            if self._sharing is not None and not self._hand_back.pending:
                self._end_sharing(self._sharing)
            if self._room() - self._room_told > self._leases.capacity // 4:
                next_heartbeat = min(next_heartbeat, last_heartbeat + EARLY_HEARTBEAT_SECONDS)
            if time.monotonic() >= next_heartbeat or self._leases.unannounced:
                last_heartbeat = time.monotonic()
                next_heartbeat = last_heartbeat + HEARTBEAT_SECONDS
                self._watch()
                with self._patience("heartbeat"):
                    try:
                        self._heartbeat()
                    except LeaseLost:
                        self._start_over()
        while not self._ended.wait(HEARTBEAT_SECONDS):
            self._watch()

    def _report_ended(self) -> None:
        """Report done tasks in one call: each call waits for the queue's disk. Where the queue does
        not answer, the next pass tries again: a drain has a deadline meanwhile."""
        while not self._stopped.is_set() and (ended := self._leases.ended[:MAX_ROWS]):
            done = [(task, outcome) for task, outcome in ended if outcome.receipt is not None]
            failed = [(task, outcome) for task, outcome in ended if outcome.receipt is None]
            groups = ([done] if done else []) + [[one] for one in failed]
            if not all(map(self._report, groups)):
                self._leases.queue_wanted.set()
                return

    def _report(self, group: Ended) -> bool:
        """Whether the queue has answered."""
        with self._patience("report"):
            try:
                self._send(group)
            except (NotFound, InvalidInput, LeaseLost) as error:
                if len(group) > 1:  # one of them is wrong; the others must not suffer for it
                    return all(self._report([one]) for one in group)
                [(task, outcome)] = group
                log.error("task %s: %s", task.key, error, extra=self._facts(task.lease))
                if isinstance(error, InvalidInput) and outcome.receipt is not None:
                    # Still ours: it is tried again, a limited number of times.
                    return self._report([(task, Outcome(None, "infra", str(error)))])
            for task, _ in group:
                self._leases.remove(task)
            return True
        return False

    def _send(self, group: Ended) -> None:
        done = [(task, outcome.receipt) for task, outcome in group if outcome.receipt is not None]
        if done:
            receipts = [(task.lease, receipt) for task, receipt in done]
            answers = self._queue.complete_all(self.token, receipts)
            for (task, receipt), answer in zip(done, answers, strict=True):
                told = f"{answer.verdict}, {_rate(task, receipt)}"
                log.info("task %s: %s", task.key, told, extra=self._facts(task.lease))
                seconds = time.monotonic() - task.since
                tracing.task_ended(
                    task.lease.job,
                    task.lease_name,
                    seconds,
                    worker=self._name,
                    pictures=receipt.done,
                    failed=receipt.failed,
                )
            return
        for task, outcome in group:
            self._queue.fail(self.token, task.lease, outcome.kind, outcome.reason)
            facts = self._facts(task.lease)
            log.warning("task %s: %s, %s", task.key, outcome.kind, outcome.reason, extra=facts)

    def _room(self, *, urgent: bool = False) -> int:
        """Pictures that could be granted now."""
        return 0 if self._drain else self._leases.room(urgent=urgent)

    def _heartbeat(self) -> None:
        ours = self._leases.tasks
        progress = self._leases.progress()
        room = self._room_told = self._room()
        urgent_room = self._room(urgent=True)
        self._heartbeats += 1
        stats = {
            **self._engine_loop.stats(),
            "beat": self._heartbeats,
            "urgent_room": urgent_room,
            "unbegun": len(self._leases.unbegun),
            "left": self._leases.left,
            "waited": round(self._publisher.waited_seconds),
        }
        sent = time.monotonic()
        answer = self._queue.heartbeat(self.token, room, progress, stats, self._lease_ms)
        self._leases.lease_end = sent + self._lease_ms / 1000
        self._leases.server_away = False
        self._leases.announced(progress)
        for key, task in ours.items():
            if key in answer.held or task.cut_short:
                self._publisher.lease_until(task, self._leases.lease_end)
            elif key in answer.cancelled:
                self._cut_short(task)
            else:
                self._drop(task)
        self._find_undelivered(answer.held - ours.keys() - answer.cancelled)
        self._obey(answer.command)
        if answer.unplanned and time.monotonic() - self._last_grant > HUNGRY_SECONDS:
            self._lease_for_itself(room, urgent_room)

    def _find_undelivered(self, unknown: set[str]) -> None:
        """Leases that are unknown here at two heartbeats: their delivery was lost."""
        if unknown & self._unknown:
            for lease in self._queue.held(self.token):
                self._take(lease)
        self._unknown = unknown

    def _lease_for_itself(self, room: int, urgent_room: int) -> None:
        """No scheduler looks, so the worker keeps the queue's time as well."""
        self._queue.tick()
        if room:
            self._queue.lease(self.token, None, room, self._lease_ms)
        elif urgent_room:
            self._queue.lease(self.token, None, urgent_room, self._lease_ms, lowest=Priority.URGENT)

    # Draining.

    def _obey(self, text: str | None) -> None:
        """Do what the session's command says; without one a worker that drained works again."""
        command = Command.parse(text)
        if self._leaving is not None:
            return
        if command is None:
            if self._told_drain:  # else a new session has not been told of the order yet
                self._ordered, self._told_drain = None, False
        elif command.kind == "share":
            if self._sharing is None:
                self._sharing = text
                self._hand_back.stop_unbegun(command.number)
        elif self._ordered is None:
            seconds = math.inf if command.number is None else command.number
            self._ordered = _Drain(time.monotonic() + seconds, ends=False)
            self._told_drain = True

    def _end_sharing(self, command: str) -> None:
        """The tasks are back; this worker may have work again, others first."""
        with self._patience("share"):
            self._queue.set_command(self.token, None, instead_of=command)
            self._last_grant = time.monotonic()
            self._sharing = None

    def _go_on_draining(self, drain: _Drain) -> None:
        if not self._told_drain:
            with self._patience("drain"):
                self._told_drain = self._queue.set_command(self.token, Command("drain"))
        self._hand_back.stop_unbegun()
        late = time.monotonic() - drain.deadline
        if late > 0:
            self._hand_back.stop_all()
        if late > STORING_SECONDS:
            self._hand_back.release(at_once=True)
        if drain.ends and (not self._leases.tasks or late > STORING_SECONDS):
            self._stopped.set()
            self._leases.engines_wanted.set()

    def _cut_short(self, task: LeasedTask) -> None:
        """Its job was cancelled: what is made stays, and the queue takes a receipt of that."""
        self._publisher.lease_until(task, self._leases.lease_end)
        if self._publisher.cut_short(task):  # there is nothing of it
            self._leases.remove(task)
        self._leases.engines_wanted.set()

    def _drop(self, task: LeasedTask) -> None:
        """A lease is not ours any more; the engine loop takes its rows out of the engine."""
        self._publisher.drop(task)  # before a successor can come
        self._leases.remove(task)

    def _start_over(self) -> None:
        """The farm has ended this session: drop everything and begin a new one. What an operator
        has drained stays so."""
        if self._stopped.is_set():  # the worker itself has just ended it
            return
        log.warning(
            "session %s was ended by the farm; starting a new one",
            self.token,
            extra={"worker": self._name, "session": self.token},
        )
        for task in self._leases.tasks.values():
            self._drop(task)
        self._told_drain, self._sharing = False, None
        self.token = secrets.token_hex(16)
        self.register()

    def _watch(self) -> None:
        """End a process whose main loop stands still: its leases are worth more than its state."""
        if self._crash_reporter is not None:
            self._crash_reporter.keep_alive()
        still = self._still_for(self._engine_loop.turned_at)
        if still > self._step_deadline_seconds:
            log.critical("no step for %.0f s; the worker ends itself", still)
            self.leave("crash")
            os._exit(FROZEN_EXIT)

    @contextlib.contextmanager
    def _patience(self, what: str) -> Iterator[None]:
        """Wait for a server that does not answer; the tasks at work go on meanwhile."""
        try:
            yield
        except Unavailable as error:
            log.warning("%s: %s; trying again", what, error)
            self._leases.server_away = not cut_off(error)
            self._stopped.wait(0.1 + 0.4 * random.random())


def _rate(task: LeasedTask, receipt: Receipt) -> str:
    """For people who read the log: what a task came to."""
    if task.lease.finalise:
        return "its job is finalised"
    seconds = max(time.monotonic() - task.since, 0.001)
    failed = f", {receipt.failed} failed" if receipt.failed else ""
    return f"{receipt.done} pictures in {seconds:.1f} s ({receipt.done / seconds:.1f}/s){failed}"
