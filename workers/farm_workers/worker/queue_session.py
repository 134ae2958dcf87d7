"""A worker's side of its session with the queue: it joins, takes grants, beats and reports."""

import contextlib
import logging
import os
import queue as queues
import random
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from farm.errors import FarmError, InvalidInput, LeaseLost, NotFound, Unavailable
from farm.job import Lease, Priority, Receipt
from farm.queue import Queue
from farm.queue.constants import MAX_ROWS
from farm.queue.queue import FIRST_LEASE_MS
from farm_workers.worker.crash_reporter import CrashReporter
from farm_workers.worker.drain import drain
from farm_workers.worker.lease_table import LeaseTable

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 1.0
EARLY_HEARTBEAT_SECONDS = 0.1  # where a quarter of the worker has become free since the last beat
HUNGRY_SECONDS = 1.0  # without a grant, then the worker leases for itself
FROZEN_EXIT = 70  # EX_SOFTWARE: whoever placed the worker starts it again


class Report(NamedTuple):
    """How a lease ended: done where there is a receipt, else failed as ``kind`` and ``reason``."""

    lease: Lease
    receipt: Receipt | None
    kind: Literal["row", "crash", "infra"] = "infra"
    reason: str = ""


class Crew(Protocol):
    """The worker, as far as its session with the queue needs it."""

    capacity: int

    def accept(self, lease: Lease) -> None: ...
    def drop(self, key: str) -> None: ...
    def when_dropped(self) -> threading.Event: ...
    def stats(self) -> Mapping[str, Any]: ...
    def lease_until(self, leases: set[str], deadline: float) -> None: ...


class QueueSession:
    """Owns the session; ``listen`` and ``control`` are the loops of two threads of the worker.

    Args:
        name: of the worker, unique in the farm.
        checkpoints, info: what the session is registered with.
        crash_reporter: told of every session that begins, so that it can say how it ended.
        stopped: ends the loops.
    """

    def __init__(
        self,
        queue: Queue,
        crew: Crew,
        aboard: LeaseTable,
        name: str,
        checkpoints: Sequence[str],
        info: Mapping[str, Any],
        *,
        lease_ms: int,
        step_deadline_seconds: float,
        crash_reporter: CrashReporter | None,
        stopped: threading.Event,
    ) -> None:
        self.session = secrets.token_hex(16)
        self._queue = queue
        self._crew = crew
        self._aboard = aboard
        self._name = name
        self._checkpoints = list(checkpoints)
        self._info = info
        self._lease_ms = lease_ms
        self._step_deadline_seconds = step_deadline_seconds
        self._crash_reporter = crash_reporter
        self._stopped = stopped
        self._ended = threading.Event()
        self._reports: queues.SimpleQueue[Report] = queues.SimpleQueue()
        self._wake = threading.Event()
        self._heartbeat_wanted = threading.Event()
        self._unknown: set[str] = set()  # held by the session, not by us, at the last beat
        self._lease_end = 0.0  # of the session, on the monotonic clock
        self._last_grant = time.monotonic()
        self._turned = time.monotonic()
        self._heartbeats = 0
        self._room_told = 0
        self._draining = False

    def register(self) -> None:
        """Begin a session; waits for a server that is away."""
        if self._crash_reporter is not None:
            self._crash_reporter.follow(self.session)
        while not self._stopped.is_set():
            with self._patience("register"):
                sent = time.monotonic()
                self._queue.register(self.session, self._name, self._checkpoints, self._info)
                self._lease_end = sent + FIRST_LEASE_MS / 1000
                return

    def report(self, report: Report) -> None:
        """Tell the queue how a lease ended, as soon as it can be told."""
        self._reports.put(report)
        self._wake.set()

    def heartbeat_now(self) -> None:
        """The next beat does not wait for its time."""
        self._heartbeat_wanted.set()
        self._wake.set()

    def turned(self) -> None:
        """The main loop goes round: the worker is not frozen."""
        self._turned = time.monotonic()

    def leave(self, why: Literal["crash", "drain"]) -> None:
        """End the session; what it holds goes back."""
        self._ended.set()
        try:
            self._queue.end(self.session, why)
        except FarmError as error:
            log.warning("the queue was not told of the end: %s", error)
            if self._crash_reporter is not None and why == "crash":
                self._crash_reporter.report_crash()
        else:
            if self._crash_reporter is not None:
                self._crash_reporter.stop()

    # Grants.

    def listen(self) -> None:
        """Take what is granted, until ``stopped``."""
        while not self._stopped.is_set():
            with self._patience("inbox"):
                for lease in self._queue.inbox(self.session, 1.0):
                    self._accept(lease)

    def _accept(self, lease: Lease) -> None:
        self._last_grant = time.monotonic()
        if self._aboard.arrive(lease):
            self._crew.lease_until({lease.key}, self._lease_end)
            self._crew.accept(lease)

    # Reports and beats.

    def control(self) -> None:
        """Send reports and beats until ``stopped``, and then watch the main loop until it ends."""
        next_beat = last_beat = 0.0
        while not self._stopped.is_set():
            self._wake.wait(max(next_beat - time.monotonic(), 0.0))
            self._wake.clear()
            self._send_reports()
            if self.room() - self._room_told > self._crew.capacity // 4:
                next_beat = min(next_beat, last_beat + EARLY_HEARTBEAT_SECONDS)
            if time.monotonic() >= next_beat or self._heartbeat_wanted.is_set():
                self._heartbeat_wanted.clear()
                last_beat = time.monotonic()
                next_beat = last_beat + HEARTBEAT_SECONDS
                self._watch()
                with self._patience("beat"):
                    try:
                        self._heartbeat()
                    except LeaseLost:
                        self._start_over()
        while not self._ended.wait(HEARTBEAT_SECONDS):
            self._watch()

    def _send_reports(self) -> None:
        """All there are: tasks that are done in one call, since each call waits for the disk."""
        while reports := list(drain(self._reports, MAX_ROWS)):
            done = [report for report in reports if report.receipt is not None]
            groups = [done] if done else []
            groups += [[report] for report in reports if report.receipt is None]
            for group in groups:
                self._send_until_heard(group)

    def _send_until_heard(self, group: list[Report]) -> None:
        while not self._stopped.is_set():
            with self._patience("report"):
                try:
                    self._send(group)
                except (NotFound, InvalidInput, LeaseLost) as error:
                    if len(group) > 1:  # one of them is wrong; the others must not suffer for it
                        for report in group:
                            self._send_until_heard([report])
                        return
                    log.error("task %s: %s", group[0].lease.key, error)
                    if isinstance(error, InvalidInput) and group[0].receipt is not None:
                        # Still ours: it is tried again, a limited number of times.
                        group = [Report(group[0].lease, None, "infra", str(error))]
                        continue
                for report in group:
                    self._aboard.left(report.lease.key)
                return

    def _send(self, group: list[Report]) -> None:
        done = [(report.lease, report.receipt) for report in group if report.receipt is not None]
        if done:
            outcomes = self._queue.complete_all(self.session, done)
            for (lease, _), outcome in zip(done, outcomes, strict=True):
                log.info("task %s: %s", lease.key, outcome.verdict)
            return
        for lease, _, kind, reason in group:
            self._queue.fail(self.session, lease, kind, reason)
            log.warning("task %s: %s, %s", lease.key, kind, reason)

    def room(self) -> int:
        """Pictures that could be granted now."""
        if self._draining:
            return 0
        return max(self._crew.capacity - self._aboard.outstanding(), 0)

    def _urgent_room(self) -> int:
        if self._draining:
            return 0
        return max(self._crew.capacity - self._aboard.outstanding(urgent_only=True), 0)

    def _heartbeat(self) -> None:
        progress = self._aboard.progress()
        ours = self._aboard.keys
        room = self._room_told = self.room()
        urgent_room = self._urgent_room()
        self._heartbeats += 1
        stats = {**self._crew.stats(), "beat": self._heartbeats, "urgent_room": urgent_room}
        sent = time.monotonic()
        beat = self._queue.heartbeat(self.session, room, progress, stats, self._lease_ms)
        self._lease_end = sent + self._lease_ms / 1000
        self._crew.lease_until(beat.held & ours, self._lease_end)
        self._aboard.told(progress)
        for key in beat.cancelled | (ours - beat.held):
            self._crew.drop(key)
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
                self._queue.lease(self.session, None, room, self._lease_ms)
            elif urgent_room:
                self._queue.lease(
                    self.session, None, urgent_room, self._lease_ms, lowest=Priority.URGENT
                )

    def _start_over(self) -> None:
        """The farm has ended this session: drop everything and begin a new one."""
        if self._stopped.is_set():  # the worker itself has just ended it
            return
        log.warning("session %s was ended by the farm; starting a new one", self.session)
        for key in self._aboard.keys:
            self._crew.drop(key)
        # The same task may come back under the new session: first the old one must be gone.
        gone = self._crew.when_dropped()
        while not gone.wait(HEARTBEAT_SECONDS) and not self._stopped.is_set():
            self._watch()
        self._draining = False
        self.session = secrets.token_hex(16)
        self.register()

    def _watch(self) -> None:
        """End a process whose main loop stands still: its leases are worth more than its state."""
        if self._crash_reporter is not None:
            self._crash_reporter.keep_alive()
        still = time.monotonic() - self._turned
        if still > self._step_deadline_seconds:
            log.critical("no step for %.0f s; the worker ends itself", still)
            self.leave("crash")
            os._exit(FROZEN_EXIT)

    @contextlib.contextmanager
    def _patience(self, what: str) -> Iterator[None]:
        """A server that is away is waited for; work that is aboard goes on meanwhile."""
        try:
            yield
        except Unavailable as error:
            log.warning("%s: %s; trying again", what, error)
            self._stopped.wait(0.1 + 0.4 * random.random())
