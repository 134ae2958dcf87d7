"""Sidecar that reports a worker's exit and its cause: a small process beside each worker.

A worker that dies by a signal of its own making (SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL) leaves
the trace of Python's fault handler in the pipe that the reporter reads. One that is killed from
outside leaves none. So the tasks that a crashed worker held are suspected, those of a killed worker
are not, and neither have to wait until their leases run out.

A trace is reported at once: the kernel may write a core for minutes before the process is gone.

A process may also stand still for ever: stopped by a signal, or with the interpreter's lock held by
code that does not return. The worker says every second that it is alive; one that has said nothing
for half a minute is killed by the reporter, so that it is restarted.
"""

import contextlib
import faulthandler
import io
import json
import logging
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from farm.errors import FarmError
from farm.queue import Queue, connect, notice

log = logging.getLogger(__name__)

GOODBYE = "goodbye"
ALIVE = "alive"
ALIVE_SECONDS = 1.0
FROZEN_SECONDS = 30.0  # three leases
LOOKS = 10  # in that time; where everything stood still with the reporter, that is one of them
PATIENCE_SECONDS = 300.0  # with a queue that does not answer

_SESSION = re.compile(r"[0-9a-f]{32}")
OOM_FILES = (
    "/proc/vmstat",
    "/sys/fs/cgroup/memory.events",
    "/sys/fs/cgroup/memory/memory.oom_control",
)
_OOM_KILL = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


class CrashReporter:
    """The worker's side. One per process: the fault handler is the process's own.

    Args:
        redis_url, farm: where the queue is.
        frozen_seconds: without a sign of life, then the worker is killed.
    """

    def __init__(
        self, redis_url: str, farm: str, *, frozen_seconds: float = FROZEN_SECONDS
    ) -> None:
        facts = {"redis_url": redis_url, "farm": farm, "frozen_seconds": frozen_seconds}
        self._queue = json.dumps(facts)
        self._session = ""
        self._lock = threading.Lock()
        self._process = self._start()
        threading.Thread(target=self._say_alive, name="alive", daemon=True).start()

    def follow(self, session: str) -> None:
        """Report on this session from now on."""
        self._session = session
        self._tell(session)

    def keep_alive(self) -> None:
        """Start another process where this one has died; where there is no room for one, the next
        call tries again."""
        with self._lock:
            if self._process.poll() is None:
                return
            log.warning("the crash reporter ended; starting another")
            before = self._process
            try:
                self._process = self._start()
            except OSError as error:
                log.warning("it cannot be started: %s", error)
                return
            if before.stdin is not None:  # only now: the fault handler has left it
                before.stdin.close()
        self._tell(self._session)

    def report_crash(self) -> None:
        """The worker is about to end by a fault of its own, and could not tell the queue."""
        self._tell("the worker failed")

    def _say_alive(self) -> None:
        while True:
            self._tell(ALIVE)
            time.sleep(ALIVE_SECONDS)

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
        os.set_blocking(
            process.stdin.fileno(), False
        )  # a stopped reporter must not stop the worker
        faulthandler.enable(process.stdin, all_threads=False)
        return process

    def _tell(self, line: str) -> None:
        with self._lock, contextlib.suppress(OSError):  # it has died; the next one is told
            assert self._process.stdin is not None
            self._process.stdin.write(f"{line}\n".encode())


def main() -> int:
    """Read what the worker says until it ends; then tell the queue how it ended."""
    # systemd sends it to all processes of a unit; the worker drains then, and is watched meanwhile.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker = os.getppid()
    queue = json.loads(io.FileIO(sys.stdin.fileno(), closefd=False).readline() or "{}")
    said = lines(sys.stdin.fileno(), queue.get("frozen_seconds", FROZEN_SECONDS))
    kills = memory_kills()
    session = ""
    why: Literal["crash", "lost"] = "lost"
    for line in said:
        if line is None:
            if session and os.getppid() == worker:  # before its session it may load for long
                why = kill_frozen(worker)
        elif line == GOODBYE:
            return 0
        elif _SESSION.fullmatch(line):
            session = line
        elif line != ALIVE:
            status = end_session(queue, session, "crash")
            print(line, *filter(None, said), sep="\n", file=sys.stderr)
            return status
    if memory_kills() > kills:
        tell_of_memory(queue)
    return end_session(queue, session, why) if session else 0


def lines(file: int, seconds: float) -> Iterator[str | None]:
    """The lines that are not empty as they come, and None after so many seconds without one."""
    held, silent = b"", 0
    while True:
        if not select.select([file], [], [], seconds / LOOKS)[0]:
            silent += 1
            if silent % LOOKS == 0:
                yield None
            continue
        silent = 0
        data = os.read(file, 65536)
        *whole, held = (held + data).split(b"\n")
        yield from filter(None, (line.decode(errors="replace").strip() for line in whole))
        if not data:
            if held:
                yield held.decode(errors="replace").strip()
            return


def kill_frozen(worker: int) -> Literal["crash", "lost"]:
    """SIGKILL; a worker that somebody stopped is lost, one that hangs by itself has crashed."""
    state = "T"
    with contextlib.suppress(OSError):  # only Linux tells it there
        state = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0]
    print(f"worker {worker} is frozen ({state}); it is killed", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):
        os.kill(worker, signal.SIGKILL)
    return "lost" if state in "Tt" else "crash"


def memory_kills() -> int:
    """How many processes the kernel has killed because memory was short, as far as it tells."""
    total = 0
    for file in OOM_FILES:
        with contextlib.suppress(OSError):
            total += sum(map(int, _OOM_KILL.findall(Path(file).read_text())))
    return total


def tell_of_memory(queue: Mapping[str, str]) -> None:
    host = socket.gethostname()
    with contextlib.suppress(FarmError):
        notice.post(
            Queue(connect(queue["redis_url"]), farm=queue["farm"]),
            f"a worker on {host} was killed because memory is short there; run fewer workers, or "
            "smaller tiles (FARM_TILE)",
        )


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
