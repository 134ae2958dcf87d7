"""Sidecar that reports a worker's exit and its cause: a small process beside each worker.

A worker that dies by a signal of its own making (SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL) leaves
the trace of Python's fault handler in the pipe that the reporter reads. One that is killed from
outside leaves none. So the tasks that a crashed worker held are suspected, those of a killed worker
are not, and neither have to wait until their leases run out.

A trace is reported at once: the kernel may write a core for minutes before the process is gone.
"""

import contextlib
import faulthandler
import json
import logging
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Literal

from farm.errors import FarmError
from farm.queue import Queue, connect

log = logging.getLogger(__name__)

GOODBYE = "goodbye"
PATIENCE_SECONDS = 300.0  # with a queue that does not answer

_SESSION = re.compile(r"[0-9a-f]{32}")


class CrashReporter:
    """The worker's side. One per process: the fault handler is the process's own.

    Args:
        redis_url, farm: where the queue is.
    """

    def __init__(self, redis_url: str, farm: str) -> None:
        self._queue = json.dumps({"redis_url": redis_url, "farm": farm})
        self._session = ""
        self._lock = threading.Lock()
        self._process = self._start()

    def follow(self, session: str) -> None:
        """Report on this session from now on."""
        self._session = session
        self._tell(session)

    def keep_alive(self) -> None:
        """Start another process where this one has died."""
        with self._lock:
            if self._process.poll() is None:
                return
            log.warning("the crash reporter ended; starting another")
            before = self._process
            self._process = self._start()
            if before.stdin is not None:  # only now: the fault handler has left it
                before.stdin.close()
        self._tell(self._session)

    def report_crash(self) -> None:
        """The worker is about to end by a fault of its own, and could not tell the queue."""
        self._tell("the worker failed")

    def stop(self) -> None:
        """The queue knows of the worker's end; there is nothing to report."""
        self._tell(GOODBYE)

    def _start(self) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "farm_workers.worker.crash_reporter"],
            stdin=subprocess.PIPE,
            bufsize=0,  # what could not be written must not come back when the pipe is closed
            start_new_session=True,  # what ends the worker's process group must not end it
        )
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.write(f"{self._queue}\n".encode())  # not an argument: it has a password
        faulthandler.enable(process.stdin, all_threads=False)
        return process

    def _tell(self, line: str) -> None:
        with self._lock, contextlib.suppress(OSError):  # it has died; the next one is told
            assert self._process.stdin is not None
            self._process.stdin.write(f"{line}\n".encode())


def main() -> int:
    """Read what the worker says until it ends; then tell the queue how it ended."""
    queue = json.loads(sys.stdin.readline() or "{}")
    session = ""
    for line in map(str.strip, sys.stdin):
        if line == GOODBYE:
            return 0
        if _SESSION.fullmatch(line):
            session = line
        elif line:
            status = end_session(queue, session, "crash")
            print(line, *sys.stdin, sep="\n", file=sys.stderr)
            return status
    return end_session(queue, session, "lost") if session else 0


def end_session(queue: Mapping[str, str], session: str, why: Literal["crash", "lost"]) -> int:
    """End a session as soon as the queue can be reached; returns an exit status."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            Queue(connect(queue["redis_url"]), farm=queue["farm"]).end(session, why)
        except FarmError:
            time.sleep(random.random())
        else:
            print(f"session {session} ended: {why}", file=sys.stderr, flush=True)
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
