"""The process that talks to Ray, kept alive from outside.

A driver of Ray is of no use after its cluster: some calls never return, some end the process, and
its handles name actors that the next cluster does not know. So the driver is a process of its own
that may die at any time; the scheduler starts another one as soon as a cluster answers.
"""

import contextlib
import json
import logging
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from farm.addresses import reachable
from farm.queue.placed_workers import PlacedWorker, from_json

log = logging.getLogger(__name__)

ALIVE = "alive"  # a line that the process writes at every pass
DEAD = "dead"  # with the life of the worker that died
WORKERS = "workers"  # with the states of all of them as JSON
CANNOT = "cannot"  # with the worker that does not run, and the cause
RAY = "ray"  # what a report is about, if not a worker
WANT = "want"  # a line that it is sent: how many workers each group has, as JSON
CLOSE = "close"  # a line that it is sent: end the workers too
START_SECONDS = 120.0  # to connect; eleven on a cold machine, many more on a busy one
SILENT_SECONDS = 20.0  # then a call to Ray does not return
RETRY_SECONDS = 1.0
CLOSE_SECONDS = 8.0
TELL_SECONDS = 30.0  # between two words on a cluster that stays away


class ClusterProcess:
    """Starts ``command`` whenever a cluster answers at ``address`` and none of it runs.

    Args:
        command: what to run; it writes ``alive``, ``dead LIFE``, ``cannot WORKER CAUSE`` and
            ``workers JSON`` as lines, and ends with its standard input.
        address: of the cluster's head, ``host:port``.
        environment: of the process.
        report: is told why something does not run: the worker's name, or ``ray``, and the cause.
    """

    def __init__(
        self,
        command: Sequence[str],
        address: str,
        environment: Mapping[str, str],
        *,
        report: Callable[[str, str], None],
    ) -> None:
        self._command = list(command)
        self._address = address
        self._environment = dict(environment)
        self._report = report
        self._running: _Running | None = None
        self._wanted: dict[str, int] = {}
        self.workers: list[PlacedWorker] = []  # as the process told last
        self._next_start = self._next_word = 0.0

    @property
    def pid(self) -> int | None:
        return self._running.process.pid if self._running else None

    def want(self, counts: Mapping[str, int]) -> None:
        """Set how many workers each group has from now on."""
        if counts != self._wanted:
            self._wanted = dict(counts)
            if self._running is not None:
                self._running.say(f"{WANT} {json.dumps(self._wanted)}")

    def deaths(self) -> list[str]:
        """Lives of workers that have ended since the last call; never blocks."""
        dead = []
        if self._running is not None:
            lines = self._running.lines()
            dead = [text for kind, text in lines if kind == DEAD]
            for kind, text in lines:
                if kind == CANNOT:
                    worker, _, cause = text.partition(" ")
                    self._report(worker, cause)
                elif kind == WORKERS:
                    self.workers = from_json(text)
            if why := self._running.ended():
                self._lose(why)
        if self._running is None and time.monotonic() >= self._next_start:
            self._start()
        return dead

    def close(self, *, end_workers: bool) -> None:
        """End the process; without ``end_workers`` they go on, as a restart of it wants."""
        if self._running is None:
            return
        if end_workers:
            self._running.say(CLOSE)
        self._running.end()
        self._running, self.workers = None, []

    def _start(self) -> None:
        self._next_start = time.monotonic() + RETRY_SECONDS
        if reachable(self._address):
            self._running = _Running(self._command, self._environment)
            if self._wanted:
                self._running.say(f"{WANT} {json.dumps(self._wanted)}")
        elif time.monotonic() >= self._next_word:
            self._next_word = time.monotonic() + TELL_SECONDS
            self._report(RAY, f"no cluster answers at {self._address}; trying again")

    def _lose(self, why: str) -> None:
        assert self._running is not None
        self._running.kill()
        self._running, self.workers = None, []
        self._next_start = time.monotonic() + RETRY_SECONDS
        self._report(RAY, f"the cluster at {self._address} is lost: {why}; connecting again")


class _Running:
    """One life of the process, and what it has said."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            list(command),
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._lines: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        self._deadline = time.monotonic() + START_SECONDS
        threading.Thread(target=self._listen, name="cluster", daemon=True).start()

    def lines(self) -> list[tuple[str, str]]:
        with self._lock:
            lines, self._lines = self._lines, []
        return lines

    def ended(self) -> str | None:
        """Why it is of no use any more."""
        status = self.process.poll()
        if status is not None:
            return f"its driver ended with status {status}"
        return "a call to it does not return" if time.monotonic() > self._deadline else None

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()

    def end(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self.process.stdin.close()
            self.process.wait(CLOSE_SECONDS)
        self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if not line.endswith("\n"):  # it ended within it
                break
            kind, _, text = line.strip().partition(" ")
            self._deadline = time.monotonic() + SILENT_SECONDS
            if kind != ALIVE:
                with self._lock:
                    self._lines.append((kind, text))
