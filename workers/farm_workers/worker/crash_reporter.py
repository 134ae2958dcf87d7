"""Who sees a worker die: a small process beside it that tells the queue at once, and what of.

A worker that dies by a signal of its own making (SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL) leaves
the trace of Python's fault handler, which goes into the pipe that the witness reads. One that is
killed from outside leaves none. So what was aboard is suspected after a crash, and after a SIGKILL
it is not; and nobody has to wait until the leases run out.

A trace is told at once: the kernel may write a core for minutes before the process is gone.
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

BYE = "bye"
PATIENCE_SECONDS = 300.0  # for a queue that is away

_SESSION = re.compile(r"[0-9a-f]{32}")


class Witness:
    """The worker's side. One per process: the fault handler is the process's own.

    Args:
        redis_url, farm: where the queue is.
    """

    def __init__(self, redis_url: str, farm: str) -> None:
        self._place = json.dumps({"redis_url": redis_url, "farm": farm})
        self._session = ""
        self._lock = threading.Lock()
        self._process = self._start()

    def watch(self, session: str) -> None:
        """The session to speak of from now on."""
        self._session = session
        self._say(session)

    def keep_alive(self) -> None:
        """Start another one where this one has died."""
        with self._lock:
            if self._process.poll() is None:
                return
            log.warning("the witness ended; starting another")
            before = self._process
            self._process = self._start()
            if before.stdin is not None:  # only now: the fault handler has left it
                before.stdin.close()
        self._say(self._session)

    def accuse(self) -> None:
        """The worker is about to end by a fault of its own, and could not tell the queue."""
        self._say("the worker failed")

    def dismiss(self) -> None:
        """The queue knows; there is nothing to tell."""
        self._say(BYE)

    def _start(self) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "farm_workers.worker.crash_reporter"],
            stdin=subprocess.PIPE,
            bufsize=0,  # what could not be written must not come back when the pipe is closed
            start_new_session=True,  # what ends the worker's process group must not end it
        )
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.write(f"{self._place}\n".encode())  # no argument: it has a password
        faulthandler.enable(process.stdin, all_threads=False)
        return process

    def _say(self, line: str) -> None:
        with self._lock, contextlib.suppress(OSError):  # it has died; the next one is told
            assert self._process.stdin is not None
            self._process.stdin.write(f"{line}\n".encode())


def main() -> int:
    """Read what the worker says until it ends; then tell the queue how."""
    place = json.loads(sys.stdin.readline() or "{}")
    session = ""
    for line in map(str.strip, sys.stdin):
        if line == BYE:
            return 0
        if _SESSION.fullmatch(line):
            session = line
        elif line:
            ended = tell(place, session, "crash")
            print(line, *sys.stdin, sep="\n", file=sys.stderr)
            return ended
    return tell(place, session, "lost") if session else 0


def tell(place: Mapping[str, str], session: str, why: Literal["crash", "lost"]) -> int:
    """End a session, as soon as the queue can be reached; returns an exit status."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            Queue(connect(place["redis_url"]), farm=place["farm"]).end(session, why)
        except FarmError:
            time.sleep(random.random())
        else:
            print(f"session {session} ended: {why}", file=sys.stderr, flush=True)
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
