"""One publisher process, and the connection to it."""

import contextlib
import multiprocessing
import os
import subprocess
import sys

from farm_workers.outbox import Parcel
from farm_workers.publisher_messages import Begin, Drop, LeaseUntil, NotStored, Ready, Stored


class Link:
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
                    "farm_workers.publisher_process",
                    str(theirs.fileno()),
                    str(os.getpid()),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        with contextlib.suppress(OSError):  # dead already: receiving will say so
            self._connection.send(begin)

    @property
    def pid(self) -> int:
        return self._process.pid

    def receive(self) -> Ready | Stored | NotStored | None:
        """What the process says next; None when it has ended."""
        try:
            answer: Ready | Stored | NotStored = self._connection.recv()
        except (EOFError, OSError):
            return None
        return answer

    def send(self, item: Parcel | LeaseUntil | Drop) -> None:
        """Raises ``OSError`` when the process has ended."""
        if not isinstance(item, Parcel):
            self._connection.send(item)
            return
        self._connection.send(item.work)
        if item.pixels is not None:
            self._connection.send_bytes(item.pixels)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
