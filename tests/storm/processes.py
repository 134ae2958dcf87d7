"""Processes that are started again whenever they end, as a machine's service manager would."""

import importlib
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

POLL_SECONDS = 0.1
STOP_SECONDS = 20.0


class Member(NamedTuple):
    """What to run: a command, or a module's function that takes the name."""

    name: str
    command: Sequence[str] = ()
    function: str = ""  # module:function
    once: bool = False  # it may end with status 0, and then stays ended


class Running(Protocol):
    pid: int

    def status(self) -> int | None: ...


class _Command:
    def __init__(self, member: Member, environment: Mapping[str, str], log: Path) -> None:
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                list(member.command),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        self.pid = self._process.pid

    def status(self) -> int | None:
        return self._process.poll()


class _Fork:
    """A process of its own that does not spend seconds on importing torch: it is forked from a
    server that has done so."""

    def __init__(self, member: Member, environment: Mapping[str, str], log: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["farm_workers.worker.worker", "farm_workers.engine.engine"])
        self._process = context.Process(
            target=_forked, args=(member.function, member.name, dict(environment), str(log))
        )
        self._process.start()
        self.pid = self._process.pid or 0

    def status(self) -> int | None:
        return self._process.exitcode


def _forked(function: str, name: str, environment: dict[str, str], log: str) -> None:
    os.environ.update(environment)
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    module, _, called = function.partition(":")
    getattr(importlib.import_module(module), called)(name)


class ProcessGroup:
    """Args:
    environment: of all members.
    logs: a folder for what each of them says.
    """

    def __init__(self, environment: Mapping[str, str], logs: Path) -> None:
        self._environment = {**os.environ, **environment}
        self._logs = logs
        self._members: dict[str, Member] = {}
        self._running: dict[str, Running] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="process group", daemon=True)
        self._thread.start()

    def start(self, member: Member) -> None:
        with self._lock:
            self._members[member.name] = member
            self._launch(member)

    def names(self, prefix: str = "") -> list[str]:
        with self._lock:
            return [
                name
                for name, process in self._running.items()
                if name.startswith(prefix) and process.status() is None
            ]

    def pid(self, name: str) -> int | None:
        with self._lock:
            process = self._running.get(name)
            return process.pid if process is not None and process.status() is None else None

    def ended(self, name: str) -> bool:
        """A member that runs once has done what it had to do."""
        with self._lock:
            return name not in self._members

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        for number in (signal.SIGCONT, signal.SIGTERM):
            for process in self._running.values():
                if process.status() is None:
                    send(process.pid, number)
        deadline = time.monotonic() + STOP_SECONDS
        for process in self._running.values():
            while process.status() is None:
                if time.monotonic() > deadline:
                    send(process.pid, signal.SIGKILL)
                time.sleep(0.05)

    def _launch(self, member: Member) -> None:
        kind = _Fork if member.function else _Command
        log = self._logs / f"{member.name}.log"
        self._running[member.name] = kind(member, self._environment, log)

    def _watch(self) -> None:
        while not self._closed.wait(POLL_SECONDS):
            with self._lock:
                for member in list(self._members.values()):
                    status = self._running[member.name].status()
                    if status is None:
                        continue
                    if member.once and status == 0:
                        del self._members[member.name]
                    else:
                        self._launch(member)


def send(pid: int, number: signal.Signals) -> bool:
    """Whether there was such a process."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def pause(pid: int, seconds: float) -> None:
    """SIGSTOP, and SIGCONT after a while."""
    send(pid, signal.SIGSTOP)
    timer = threading.Timer(seconds, send, (pid, signal.SIGCONT))
    timer.daemon = True
    timer.start()
