"""Worker processes that die, and what the queue is told: real processes, real signals."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from test_worker import TENANT, Farm, until

from farm.job import JobState
from farm.queue import Queue, connect, notice
from farm_workers.worker import crash_reporter

ENDED = (JobState.DONE, JobState.FAILED)
PROGRAM = Path(__file__).with_name("worker_process.py")


class Processes:
    """A farm whose workers are processes."""

    def __init__(self, farm: Farm, folder: Path) -> None:
        self.farm = farm
        self._log = folder / "worker.log"
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, **environment: str) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(PROGRAM), name],
                env={
                    **os.environ,
                    "REDIS_URL": self.farm.settings.redis_url,
                    "FARM_STORE": self.farm.settings.store_url,
                    "FARM_CHECKPOINTS": "fake",
                    # Longer than any test: nothing here waits for the end of a lease.
                    "FARM_LEASE_MS": "120000",
                    "FARM_DRAIN_SECONDS": "0",
                    **environment,
                },
                stderr=log,
            )
        self._running.append(process)
        return process

    def lives(self, job: str, **environment: str) -> int:
        """One worker after the other until the job has ended; returns how many it took."""
        for life in range(1, 12):
            process = self.start(f"worker-{life}", **environment)
            until(lambda: process.poll() is not None or self.farm.state(job) in ENDED, 60)  # noqa: B023
            if process.poll() is None:
                return life
            until(lambda: not self.farm.queue.sessions(), 60)
        raise AssertionError("the job does not end")

    def log(self) -> str:
        return self._log.read_text()

    def stop(self) -> None:
        for process in self._running:
            process.terminate()
        for process in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()


@pytest.fixture
def processes(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Processes]:
    processes = Processes(Farm(redis_url, tmp_path / "store", monkeypatch), tmp_path)
    yield processes
    processes.stop()


def errors(farm: Farm, job: str) -> dict[int, str]:
    return {row.render: str(row.failure) for row in farm.rows(job) if row.error is not None}


@pytest.mark.slow
def test_a_killed_worker_loses_its_leases_at_once_and_no_task_is_blamed(
    processes: Processes,
) -> None:
    farm = processes.farm
    first = processes.start("worker-0", FARM_FAULTS="hang:a")
    job = farm.submit("a", "b", "c")
    until(lambda: farm.queue.status(job, TENANT).tasks.leased == 1, 60)
    time.sleep(0.5)  # so that its rows are in the engine
    first.kill()
    until(lambda: farm.queue.status(job, TENANT).tasks.leased == 0, 60)
    processes.start("worker-1")
    farm.wait(job)
    assert errors(farm, job) == {}
    assert "ended: lost" in processes.log()


@pytest.mark.slow
def test_a_row_that_segfaults_fails_alone(processes: Processes) -> None:
    farm = processes.farm
    job = farm.submit("a", "b", "a bad one", "c", max_failed=1)
    assert processes.lives(job, FARM_FAULTS="segfault:bad") == 4
    assert errors(farm, job) == {2: "error[render]: it crashed its worker twice while it ran alone"}
    assert "Segmentation fault" in processes.log()


@pytest.mark.slow
def test_a_row_that_hangs_fails_alone(processes: Processes) -> None:
    farm = processes.farm
    job = farm.submit("a", "a bad one", "c", max_failed=1)
    processes.lives(job, FARM_FAULTS="hang:bad", FARM_STEP_DEADLINE_SECONDS="3")
    assert list(errors(farm, job)) == [1]


def test_a_row_that_is_not_finite_and_one_that_is_slow(processes: Processes) -> None:
    farm = processes.farm
    job = farm.submit("a", "a bad one", "a slow one", max_failed=1)
    assert processes.lives(job, FARM_FAULTS="nan:bad,slow:slow") == 1
    assert errors(farm, job) == {1: "error[render]: its logits are not finite"}


def test_a_worker_whose_crash_reporter_was_killed_gets_another(processes: Processes) -> None:
    farm = processes.farm
    first = processes.start("worker-0")
    until(lambda: farm.queue.sessions(), 60)
    reporter = reporter_of(first.pid)
    assert reporter
    os.kill(reporter, signal.SIGKILL)
    until(lambda: reporter_of(first.pid) not in (0, reporter), 60)
    seen = time.monotonic()
    # The heartbeat after its start: by then it has been told of the session.
    until(lambda: farm.queue.sessions()[0].seen_ms < 1000 * (time.monotonic() - seen) - 10, 60)
    first.kill()
    until(lambda: not farm.queue.sessions(), 60)


def test_a_worker_whose_crash_reporter_dies_again_and_again_works_on(redis_url: str) -> None:
    """Also before there is a session: what could not be written must not come back."""
    ended = subprocess.run(
        [sys.executable, "-c", DYING_REPORTERS, redis_url], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert "ended: lost" in ended.stderr


DYING_REPORTERS = """
import sys, time
from farm_workers.worker.crash_reporter import CrashReporter

reporter = CrashReporter(sys.argv[1], "farm")
for session in ("0" * 32, "1" * 32):
    reporter._process.kill()
    reporter._process.wait()
    reporter.follow(session)
    reporter.keep_alive()
"""


def test_a_worker_that_can_start_no_crash_reporter_now_works_on_and_tries_again(
    redis_url: str,
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", NO_ROOM, redis_url], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert "it cannot be started: [Errno 24]" in ended.stderr
    assert "ended: lost" in ended.stderr


NO_ROOM = """
import resource, sys
from farm_workers.worker.crash_reporter import CrashReporter

reporter = CrashReporter(sys.argv[1], "farm")
reporter._process.kill()
reporter._process.wait()
reporter.follow("0" * 32)
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
reporter.keep_alive()
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
reporter.keep_alive()
"""


def test_a_stopped_worker_is_killed_and_its_tasks_go_on(processes: Processes) -> None:
    farm = processes.farm
    first = processes.start("worker-0", FARM_FAULTS="hang:a", FROZEN_SECONDS="2")
    job = farm.submit("a", "b")
    until(lambda: farm.queue.status(job, TENANT).tasks.leased == 1, 60)
    first.send_signal(signal.SIGSTOP)
    assert first.wait(60) == -signal.SIGKILL
    processes.start("worker-1")
    farm.wait(job)
    assert errors(farm, job) == {}
    assert "is frozen (T)" in processes.log()
    assert "ended: lost" in processes.log()


def test_a_pause_of_reporter_and_worker_alike_is_not_the_workers_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long it takes, a frozen container is one look without a sign of life."""
    ours, theirs = os.pipe()
    os.write(theirs, b"alive\n")
    looks = [False] * (crash_reporter.LOOKS - 1) + [True] + [False] * crash_reporter.LOOKS

    def look(files: list[int], *_: object) -> tuple[list[int], list[int], list[int]]:
        return (files if looks.pop(0) else []), [], []

    monkeypatch.setattr(select, "select", look)
    said = crash_reporter.lines(ours, 30.0)
    assert [next(said), next(said), looks] == ["alive", None, []]
    os.close(ours)
    os.close(theirs)


def test_a_worker_that_was_paused_for_longer_than_a_step_may_take_has_not_crashed(
    processes: Processes,
) -> None:
    farm = processes.farm
    worker = processes.start("worker-0", FARM_STEP_DEADLINE_SECONDS="3", FARM_FAULTS="slow:b")
    job = farm.submit("a", "b")
    until(lambda: farm.queue.status(job, TENANT).tasks.leased == 1, 60)
    paused = [reporter_of(worker.pid), worker.pid]
    for pid in paused:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(5)
    for pid in paused:
        os.kill(pid, signal.SIGCONT)
    farm.wait(job)
    assert worker.poll() is None
    assert "no step" not in processes.log()


def test_a_worker_that_holds_the_interpreters_lock_for_ever_has_crashed(redis_url: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HOLDS_THE_LOCK, redis_url], capture_output=True, text=True
    )
    assert ended.returncode == -signal.SIGKILL
    assert "ended: crash" in ended.stderr


HOLDS_THE_LOCK = """
import ctypes, sys
from farm_workers.worker.crash_reporter import CrashReporter

CrashReporter(sys.argv[1], "farm", frozen_seconds=2).follow("0" * 32)
ctypes.PyDLL(None).sleep(100)
"""


def test_a_worker_that_was_killed_for_memory_is_told(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = tmp_path / "memory.events"
    events.write_text("oom 3\noom_kill 1\noom_group_kill 0\n")
    monkeypatch.setattr(crash_reporter, "OOM_FILES", (str(events), str(tmp_path / "none")))
    before = crash_reporter.memory_kills()
    events.write_text("oom 4\noom_kill 2\noom_group_kill 0\n")
    assert crash_reporter.memory_kills() - before == 1
    crash_reporter.tell_of_memory({"redis_url": redis_url, "farm": "farm"})
    assert "memory is short" in str(notice.read(Queue(connect(redis_url), farm="farm")))


def test_a_stopped_reporter_does_not_stop_its_worker(redis_url: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", STOPPED_REPORTER, redis_url], capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr


STOPPED_REPORTER = """
import os, signal, sys
from farm_workers.worker.crash_reporter import CrashReporter

reporter = CrashReporter(sys.argv[1], "farm")
os.kill(reporter._process.pid, signal.SIGSTOP)
for number in range(5000):  # more than a pipe holds
    reporter.follow("0" * 32)
os.kill(reporter._process.pid, signal.SIGKILL)
"""


def test_a_crash_is_reported_before_the_process_is_gone(
    redis_url: str, processes: Processes
) -> None:
    """The kernel may write a core for longer than a lease lasts."""
    queue = processes.farm.queue
    dying = subprocess.Popen(
        [sys.executable, "-c", SLOW_DEATH, redis_url], stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: queue.sessions(), 60)
        until(lambda: not queue.sessions(), 20)
        assert dying.poll() is None
    finally:
        dying.kill()
        dying.wait()


SLOW_DEATH = """
import sys, time
from farm.queue import Queue, connect
from farm_workers.worker.crash_reporter import CrashReporter

Queue(connect(sys.argv[1])).register("a" * 32, "dying", [], {})
reporter = CrashReporter(sys.argv[1], "farm")
reporter.follow("a" * 32)
time.sleep(2)
reporter.report_crash()
time.sleep(60)
"""


def test_a_signal_to_all_processes_of_a_worker_leaves_it_whole_until_it_has_drained(
    processes: Processes,
) -> None:
    """So systemd stops a unit."""
    farm = processes.farm
    worker = processes.start("worker-0", FARM_DRAIN_SECONDS="60")
    until(lambda: farm.queue.sessions(), 60)
    children = psutil.Process(worker.pid).children()
    assert len(children) == 2, "its crash reporter and its publisher"
    until(lambda: all(map(ignores_sigterm, children)), 60)
    job = farm.submit(*(str(number) for number in range(40)))
    # A lease that has not reached the worker yet goes back to the queue.
    until(lambda: farm.queue.sessions()[0].stats.get("left") or _done(farm, job) == 40, 60)
    for process in (*children, psutil.Process(worker.pid)):
        process.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    assert _done(farm, job) == 40
    assert "ended" not in processes.log()


def _done(farm: Farm, job: str) -> int:
    return farm.queue.status(job, TENANT).images.done


def ignores_sigterm(process: psutil.Process) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    [ignored] = [line for line in status.splitlines() if line.startswith("SigIgn:")]
    return bool(int(ignored.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_a_worker_that_ends_in_order_is_not_reported(processes: Processes) -> None:
    first = processes.start("worker-0")
    until(lambda: processes.farm.queue.sessions(), 60)
    reporter = reporter_of(first.pid)
    first.terminate()
    assert first.wait(60) == 0
    until(lambda: not psutil.pid_exists(reporter), 60)
    assert "session" not in processes.log()


def reporter_of(pid: int) -> int:
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.ZombieProcess):
            if "farm_workers.worker.crash_reporter" in child.cmdline():
                return child.pid
    return 0
