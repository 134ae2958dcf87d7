"""Processes kept alive: started in order, restarted when they die, ended completely."""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from farm.disk import put_whole
from farm.errors import Unavailable

log = logging.getLogger(__name__)

SCARCE_BYTES = 64 * 2**20  # of a disk; with less than that not every part of a farm starts
MARK = "FARM_UP"  # set for every process of an embedded farm: its data directory
STABLE_SECONDS = 60.0  # a process that lived so long starts again without delay
MAX_DELAY_SECONDS = 10.0
MAX_LOG_BYTES = 10 * 2**20
ROTATE_SECONDS = 5.0  # between two looks at a log
HEALTH_SECONDS = 3.0  # between two looks at whether a process still serves


@dataclass(frozen=True)
class Service:
    """One process of a farm; ``ready`` says whether it serves, within so many seconds.

    A process may be stopped or hang without ending: ``healthy`` says whether it still serves, and
    after ``patience`` times no in a row it is ended and started again. ``logs`` gives the files to
    which it appends besides its own log.
    """

    name: str
    command: Sequence[str]
    ready: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 60.0
    advice: Callable[[str], str | None] = lambda words: None  # turns its last words into a hint
    healthy: Callable[[], bool] | None = None
    patience: int = 6
    logs: Callable[[], Iterable[Path]] = lambda: ()


class Supervisor:
    """Runs services under one data directory.

    Every service leads a process session of its own, so that Ctrl-C reaches the supervisor alone
    and ``stop`` ends what a service started in turn. ``run/<name>.pid`` holds its process id.
    """

    def __init__(self, data: Path, stopped: threading.Event) -> None:
        self._stopped = stopped
        self._run = data / "run"
        self._logs = data / "logs"
        self._mark = {MARK: str(data)}
        self._started: list[_Running] = []
        for folder in (self._run, self._logs):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def start(self, service: Service) -> None:
        """Start a service and wait until it serves; those before it are kept alive meanwhile.

        Raises:
            Unavailable: it ended or did not serve in time; the message has its last words.
            KeyboardInterrupt: ``stopped`` was set meanwhile.
        """
        running = _Running(service, self._launch(service), time.monotonic())
        self._started.append(running)
        self._note_pid(running)
        deadline = time.monotonic() + service.seconds
        while not service.ready():
            if running.process.poll() is not None:
                words = self._last_words(service)
                raise Unavailable(
                    f"{service.name} ended with status {running.process.returncode} at its start: "
                    f"{words}",
                    hint=service.advice(words) or self._scarce() or f"see {self._log(service)}",
                )
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"{service.name} did not serve within {service.seconds:.0f} s; its last words: "
                    f"{self._last_words(service)}",
                    hint=f"see {self._log(service)}",
                )
            self._tend(self._started[:-1])
            if self._stopped.wait(0.05):
                raise KeyboardInterrupt
        running.served_since = running.since
        log.info("%s runs (pid %d)", service.name, running.process.pid)

    def watch(self) -> None:
        """Restart what dies or no longer serves, until ``stopped`` is set."""
        for running in self._started:
            if running.service.healthy is not None:
                threading.Thread(target=self._watch_health, args=(running,), daemon=True).start()
        while not self._stopped.wait(0.1):
            self._tend(self._started)

    def _tend(self, group: "Sequence[_Running]") -> None:
        for running in group:
            try:
                self._look(running, time.monotonic())
            except OSError as error:  # no disk, file or process left for it: later, perhaps
                log.warning("%s cannot be started: %s", running.service.name, error)
                running.restart_at = time.monotonic() + MAX_DELAY_SECONDS

    def _look(self, running: "_Running", now: float) -> None:
        """One look at a process. It is known from the moment it exists: what fails after that, its
        pid file or a log, is mended later and never starts a second one."""
        if running.process.poll() is None:
            if not running.noted:
                self._note_pid(running)
            if now > running.rotate_at:
                running.rotate_at = now + ROTATE_SECONDS
                for log_file in (self._log(running.service), *running.service.logs()):
                    with contextlib.suppress(OSError):  # it has gone, or the disk is full: later
                        rotate(log_file)
            if running.failures and now - running.since > STABLE_SECONDS:
                running.failures = 0
            if running.silent >= running.service.patience:
                log.warning("%s does not answer; it is ended", running.service.name)
                running.silent = 0
                running.process.kill()
            return
        if running.restart_at is None:
            delay = min(0.1 * 3 ** min(running.failures, 6), MAX_DELAY_SECONDS)
            running.restart_at = now + delay
            running.failures += 1
            _end_session(running.process.pid)
            log.warning(
                "%s ended (status %s); starting it again",
                running.service.name,
                running.process.returncode,
            )
        if now >= running.restart_at:
            running.since = now
            running.process = self._launch(running.service)
            running.restart_at = None
            running.noted = False
            self._note_pid(running)

    def _watch_health(self, running: "_Running") -> None:
        """Count how often in a row it did not serve; not the seconds, which also go by while the
        supervisor itself is stopped. One that has just been started has its time to begin."""
        assert running.service.healthy is not None
        while not self._stopped.wait(HEALTH_SECONDS):
            if running.service.healthy():
                running.silent, running.served_since = 0, running.since
            elif (
                running.served_since == running.since
                or time.monotonic() - running.since > running.service.seconds
            ):
                running.silent += 1

    def stop(self, name: str, seconds: float = 10.0) -> None:
        """End one service and everything in its process session."""
        for running in self._started:
            if running.service.name == name:
                running.process.terminate()
                try:
                    running.process.wait(seconds)
                except subprocess.TimeoutExpired:
                    running.process.kill()
                    running.process.wait()
                _end_session(running.process.pid)
                self._started.remove(running)
                (self._run / f"{name}.pid").unlink(missing_ok=True)
                return

    @property
    def names(self) -> list[str]:
        return [running.service.name for running in self._started]

    def _launch(self, service: Service) -> "subprocess.Popen[bytes]":
        with self._log(service).open("ab") as out:
            return subprocess.Popen(
                list(service.command),
                env={**os.environ, **service.environment, **self._mark},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self._run,
                start_new_session=True,
            )

    def _note_pid(self, running: "_Running") -> None:
        """Write the pid file; on a full disk the next look tries again."""
        with contextlib.suppress(OSError):
            pid = f"{running.process.pid}\n".encode()
            put_whole(self._run / f"{running.service.name}.pid", pid)
            running.noted = True

    def _log(self, service: Service) -> Path:
        return self._logs / f"{service.name}.log"

    def _scarce(self) -> str | None:
        """On a full disk a program rarely says why it ends."""
        free = shutil.disk_usage(self._logs).free
        if free >= SCARCE_BYTES:
            return None
        left = f"{free / 2**20:.1f} MiB are free below {self._logs.parent}"
        return f"{left}: free some space, or use another folder"

    def _last_words(self, service: Service) -> str:
        lines = self._log(service).read_text(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "it wrote nothing"


@dataclass
class _Running:
    service: Service
    process: "subprocess.Popen[bytes]"
    since: float
    failures: int = 0
    restart_at: float | None = None
    noted: bool = False  # its pid file is written
    rotate_at: float = 0.0  # when its log is looked at next
    silent: int = 0  # looks in a row at which it did not serve
    served_since: float = 0.0  # ``since`` of the process that has served


def rotate(log_file: Path) -> None:
    """Keep the last ``MAX_LOG_BYTES`` of a log that has grown beyond them in ``<name>.1``.

    Its writer holds it open to append, so it is emptied in place; a line that is written between
    the copy and the cut is lost.
    """
    if not log_file.exists() or log_file.stat().st_size <= MAX_LOG_BYTES:
        return
    older = log_file.with_name(f"{log_file.name}.1")
    older.unlink(missing_ok=True)
    try:
        shutil.copyfile(log_file, older)
    except OSError:  # a full disk has room again when the log is cut
        older.unlink(missing_ok=True)
    os.truncate(log_file, 0)


def sweep(data: Path) -> list[int]:
    """End every process, but this one, that belongs to the farm in ``data``; returns their ids.

    They are known by a mark in their environment, not by a pid file: a process id may have been
    given to another program since.
    """
    ended: list[int] = []
    while found := members(data):
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        _, alive = psutil.wait_procs(found, timeout=10)
        ended += [process.pid for process in found]
        if alive:
            log.warning("%s does not end", ", ".join(map(str, alive)))
            break
    return ended


def members(data: Path) -> list[psutil.Process]:
    """What belongs to the farm in ``data``: processes with its mark, and what they started.

    Ray's workers write their title over their environment, so they are found by their parents.
    """
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(data):
                found |= {process, *process.children(recursive=True)}
    return [process for process in found if process.pid != os.getpid() and _lives(process)]


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _end_session(leader: int) -> None:
    """SIGKILL what is left of a process session whose leader has ended."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == leader and process.pid != leader:
                process.send_signal(signal.SIGKILL)
