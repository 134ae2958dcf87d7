"""Who sees a worker die: a small process beside it that tells the queue at once, and what of.

A worker that dies by a signal of its own making (SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL) leaves
the trace of Python's fault handler, which goes into the pipe that the witness reads. One that is
killed from outside leaves none. So what was aboard is suspected after a crash, and after a SIGKILL
it is not; and nobody has to wait until the leases run out.
"""

import contextlib
import faulthandler
import json
import logging
import random
import re
import subprocess
import sys
import time

from farm.errors import FarmError
from farm.queue import Queue, connect

log = logging.getLogger(__name__)

BYE = "bye"
PATIENCE_SECONDS = 300.0  # for a queue that is away; the leases have run out long before

_SESSION = re.compile(r"[0-9a-f]{32}")


class Witness:
    """The worker's side. One per process: the fault handler is the process's own.

    Args:
        redis_url, farm: where the queue is.
    """

    def __init__(self, redis_url: str, farm: str) -> None:
        self._place = json.dumps({"redis_url": redis_url, "farm": farm})
        self._session = ""
        self._process = self._start()

    def watch(self, session: str) -> None:
        """The session to speak of from now on."""
        self._session = session
        self._say(session)

    def keep_alive(self) -> None:
        """Start another one where this one has died."""
        if self._process.poll() is not None:
            log.warning("the witness ended; starting another")
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process = self._start()
            self._say(self._session)

    def accuse(self) -> None:
        """The worker is about to end by a fault of its own, and could not tell the queue."""
        self._say("the worker failed")

    def dismiss(self) -> None:
        """The queue knows; there is nothing to tell."""
        self._say(BYE)

    def _start(self) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "farm_workers.witness"],
            stdin=subprocess.PIPE,
            start_new_session=True,  # what ends the worker's process group must not end it
        )
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.write(f"{self._place}\n".encode())  # no argument: it has a password
            process.stdin.flush()
        faulthandler.enable(process.stdin, all_threads=False)
        return process

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has died; the next one is told
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()


def main() -> int:
    """Read what the worker says until it ends; then tell the queue how."""
    place = json.loads(sys.stdin.readline() or "{}")
    session, trace = "", []
    for line in map(str.strip, sys.stdin):
        if line == BYE:
            return 0
        if _SESSION.fullmatch(line):
            session, trace = line, []
        elif line:
            trace.append(line)
    if not session:
        return 0
    if trace:
        print("\n".join(trace), file=sys.stderr, flush=True)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            queue = Queue(connect(place["redis_url"]), farm=place["farm"])
            queue.end(session, "crash" if trace else "lost")
        except FarmError:
            time.sleep(random.random())
        else:
            print(f"session {session} ended: {'crash' if trace else 'lost'}", file=sys.stderr)
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
