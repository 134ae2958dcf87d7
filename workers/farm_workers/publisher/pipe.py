"""One publisher process, and the connection to it."""

import contextlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Sequence

from farm_workers.publisher.messages import (
    Alive,
    Begin,
    Notice,
    NotStored,
    Ready,
    Stored,
)
from farm_workers.publisher.uploads import PendingUpload

START_SECONDS = 120  # until the process takes work
SILENT_SECONDS = 10  # without a sign of life, then it has been stopped or hangs


class ProcessPipe:
    """Starts the process; to be made by a thread that lasts.

    Linux ends a child that asked to die with its parent when the *thread* that started it ends.
    """

    def __init__(self, begin: Begin) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",  # the current directory may hold a package of the same name
                    "-m",
                    "farm_workers.publisher.process",
                    str(theirs.fileno()),
                    str(os.getpid()),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        with contextlib.suppress(OSError):  # dead already: receiving will say so
            self._connection.send(begin)
        self._ready = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def receive(self) -> list[Ready | Stored | NotStored] | None:
        """What the process says next; None when it has ended or is silent for too long."""
        silent = 0  # seconds of looking, so that a pause of this process is not taken for one of it
        with contextlib.suppress(EOFError, OSError):
            while silent < (SILENT_SECONDS if self._ready else START_SECONDS):
                if not self._connection.poll(1.0):
                    silent += 1
                    continue
                told: list[Alive | Ready | Stored | NotStored] = self._connection.recv()
                if answers := [one for one in told if not isinstance(one, Alive)]:
                    self._ready = True
                    return answers
                silent = 0
        return None

    def send(self, items: Sequence[PendingUpload | Notice]) -> None:
        """Raises ``OSError`` when the process has ended."""
        told = [item.work if isinstance(item, PendingUpload) else item for item in items]
        self._connection.send(told)
        for item in items:
            if isinstance(item, PendingUpload) and item.pixels is not None:
                self._connection.send_bytes(item.pixels)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
