"""The supervisor, with real processes."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from waiting import until

from farm.errors import Unavailable
from farm.local import supervisor as supervisor_module
from farm.local.probes import answers
from farm.local.supervisor import MARK, Service, Supervisor, members, rotate, sweep

SLEEPS = [sys.executable, "-c", "import time; time.sleep(600)"]
HAS_CHILD = [
    sys.executable,
    "-c",
    "import subprocess, sys, time;"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)",
]


@pytest.fixture
def stopped() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def supervisor(tmp_path: Path, stopped: threading.Event) -> Iterator[Supervisor]:
    yield Supervisor(tmp_path, stopped)
    sweep(tmp_path)


def pid(tmp_path: Path, name: str) -> int:
    return int((tmp_path / "run" / f"{name}.pid").read_text())


def test_what_does_not_speak_http_does_not_answer() -> None:
    """A thread of the supervisor asks for as long as the farm runs: an error would end it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
                connection.recv(4096)

        greeter = threading.Thread(target=greet)
        greeter.start()
        assert not answers(f"http://127.0.0.1:{listener.getsockname()[1]}/healthz")
        greeter.join()


def test_a_killed_process_is_started_again_under_a_new_pid(
    supervisor: Supervisor, stopped: threading.Event, tmp_path: Path
) -> None:
    supervisor.start(Service("sleeper", SLEEPS, ready=lambda: True))
    watcher = threading.Thread(target=supervisor.watch)
    watcher.start()
    first = pid(tmp_path, "sleeper")
    os.kill(first, signal.SIGKILL)
    until(lambda: pid(tmp_path, "sleeper") != first)
    assert psutil.pid_exists(pid(tmp_path, "sleeper"))
    stopped.set()
    watcher.join(5)


def test_a_process_that_ends_at_its_start_is_reported_with_its_last_words(
    supervisor: Supervisor,
) -> None:
    service = Service(
        "broken", [sys.executable, "-c", "raise SystemExit('no bucket')"], ready=lambda: False
    )
    with pytest.raises(Unavailable, match="status 1 at its start: no bucket"):
        supervisor.start(service)


def test_a_process_that_ends_for_want_of_room_is_reported_with_what_is_free(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**19))
    service = Service("broken", [sys.executable, "-c", "exit(1)"], ready=lambda: False)
    with pytest.raises(Unavailable) as caught:
        supervisor.start(service)
    assert str(caught.value.hint).startswith("0.5 MiB are free below ")


def test_stopping_a_service_ends_what_it_started(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(Service("parent", HAS_CHILD, ready=lambda: True))
    parent = psutil.Process(pid(tmp_path, "parent"))
    until(lambda: parent.children())
    (child,) = parent.children()
    supervisor.stop("parent")
    until(lambda: not child.is_running())
    assert not (tmp_path / "run" / "parent.pid").exists()


def test_a_sweep_ends_only_what_belongs_to_the_farm(tmp_path: Path) -> None:
    ours = subprocess.Popen(SLEEPS, env={**os.environ, MARK: str(tmp_path)})
    strangers = subprocess.Popen(SLEEPS, env={**os.environ, MARK: str(tmp_path / "other")})
    try:
        until(lambda: psutil.Process(ours.pid).environ().get(MARK) == str(tmp_path))
        assert sweep(tmp_path) == [ours.pid]
        assert not psutil.pid_exists(ours.pid)
        assert strangers.poll() is None
    finally:
        ours.wait()
        strangers.kill()
        strangers.wait()


def test_a_child_is_never_forgotten_when_its_pid_file_cannot_be_written(
    supervisor: Supervisor,
    stopped: threading.Event,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a full disk a second server was started beside the first."""
    supervisor.start(Service("sleeper", SLEEPS, ready=lambda: True))
    first, written = pid(tmp_path, "sleeper"), supervisor_module.put_whole

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(supervisor_module, "put_whole", full)
    watcher = threading.Thread(target=supervisor.watch)
    watcher.start()
    os.kill(first, signal.SIGKILL)

    def living() -> list[psutil.Process]:
        return [process for process in members(tmp_path) if process.pid != first]

    until(living)
    time.sleep(1)
    (second,) = living()
    monkeypatch.setattr(supervisor_module, "put_whole", written)
    until(lambda: pid(tmp_path, "sleeper") == second.pid)
    stopped.set()
    watcher.join(5)
    supervisor.stop("sleeper")
    assert members(tmp_path) == []


def test_a_log_does_not_grow_beyond_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "MAX_LOG_BYTES", 1000)
    file = tmp_path / "gateway.log"
    with file.open("ab") as writer:
        for _ in range(3):
            writer.write(b"x" * 1001)
            writer.flush()
            rotate(file)
            assert file.stat().st_size == 0
            assert file.with_suffix(".log.1").stat().st_size == 1001
        writer.write(b"y")
        writer.flush()
    rotate(file)
    assert file.read_bytes() == b"y"


def test_what_a_process_writes_besides_its_log_is_kept_short_too(
    supervisor: Supervisor,
    stopped: threading.Event,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor_module, "MAX_LOG_BYTES", 1000)
    monkeypatch.setattr(supervisor_module, "ROTATE_SECONDS", 0.05)
    said = tmp_path / "worker-0.err"
    said.write_bytes(b"x" * 1001)
    gone = tmp_path / "worker-1.err"
    supervisor.start(
        Service("sleeper", SLEEPS, ready=lambda: True, logs=lambda: iter([gone, said]))
    )
    watcher = threading.Thread(target=supervisor.watch)
    watcher.start()
    until(lambda: said.stat().st_size == 0)
    assert (tmp_path / "worker-0.err.1").stat().st_size == 1001
    stopped.set()
    watcher.join()


def test_a_process_that_is_stopped_or_hangs_is_ended_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "HEALTH_SECONDS", 0.05)
    pulse = tmp_path / "pulse"
    program = (
        "import pathlib, sys, time\nwhile True: pathlib.Path(sys.argv[1]).touch(); time.sleep(0.02)"
    )
    healthy = {"asked": 0}

    def beats() -> bool:
        """Whether it has touched the file since it was asked last."""
        healthy["asked"] += 1
        fresh = pulse.exists()
        pulse.unlink(missing_ok=True)
        return fresh

    stopped = threading.Event()
    supervisor = Supervisor(tmp_path, stopped)
    supervisor.start(
        Service(
            "beater",
            [sys.executable, "-c", program, str(pulse)],
            ready=pulse.exists,
            healthy=beats,
            patience=20,
        )
    )
    watcher = threading.Thread(target=supervisor.watch)
    watcher.start()
    try:
        until(lambda: healthy["asked"] > 25)
        first = pid(tmp_path, "beater")
        os.kill(first, signal.SIGSTOP)
        until(lambda: pid(tmp_path, "beater") != first)
        until(pulse.exists)
    finally:
        stopped.set()
        watcher.join(5)
        supervisor.stop("beater")


def test_a_process_that_dies_while_the_next_one_starts_is_started_again(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    supervisor.start(Service("first", SLEEPS, ready=lambda: True))
    killed = pid(tmp_path, "first")
    os.kill(killed, signal.SIGKILL)
    supervisor.start(Service("next", SLEEPS, ready=lambda: pid(tmp_path, "first") != killed))
    assert psutil.pid_exists(pid(tmp_path, "first"))
