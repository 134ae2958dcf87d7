"""Workers on a real Ray cluster: what becomes of each, and who may end it."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from test_worker import Farm, until

from farm.local.embedded import direct
from farm.queue import Queue, connect, placed_workers
from farm.queue.placed_workers import PlacedWorker, WorkerState
from farm.scheduler.cluster_process import ClusterProcess
from farm.scheduler.placer import Placer
from farm.scheduler.scheduler import Scheduler
from farm.worker_group import WorkerGroup

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("placement")]

HERE = Path(__file__).parent
SECONDS = 60.0  # that a worker may take to start on a machine that is busy


class Cluster:
    """A head with room for one CPU, and a node that comes and goes."""

    def __init__(self, folder: Path) -> None:
        self.environment = self.settings(folder)
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "ray_cluster.py")],
            env={**os.environ, **self.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.address = self._answer()

    def settings(self, folder: Path) -> dict[str, str]:
        """Of all its processes."""
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        return {
            **direct(),
            "PYTHONPATH": f"{HERE}:{HERE.parent}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # otherwise it binds every interface
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def say(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("ray"))
    yield cluster
    cluster.end()


class Schedulers:
    """A farm on a cluster, and the schedulers that a test starts."""

    def __init__(self, farm: Farm, cluster: Cluster, folder: Path) -> None:
        self.farm = farm
        self.cluster = cluster
        self.trace = folder / "trace"
        self._running: list[tuple[Placer, threading.Event, threading.Thread]] = []

    def start(self, group: WorkerGroup, **settings: str) -> None:
        """One more scheduler, of whatever settings; it started last."""
        environment = {
            **os.environ,
            **self.cluster.environment,
            "REDIS_URL": self.farm.settings.redis_url,
            "RAY_ADDRESS": self.cluster.address,
            "FARM_STORE": self.farm.settings.store_url,
            "FARM_WORKERS": f"{group.least}-{group.most}",
            "FARM_WORKER_CPUS": str(group.cpus),
            "FARM_LEASE_MS": "60000",
            "FARM_THREADS": "1",
            **settings,
        }
        process = ClusterProcess(
            [sys.executable, str(HERE / "ray_placer.py")],
            self.cluster.address,
            environment,
            report=lambda what, cause: None,
        )
        queue = Queue(connect(self.farm.settings.redis_url))
        placer = Placer(
            queue, process, [group], target_seconds=1, shrink_seconds=2, end_workers=True
        )
        scheduler = Scheduler(queue, lease_ms=60_000, placement=placer)
        stopped = threading.Event()
        thread = threading.Thread(target=scheduler.run, args=(stopped,))
        thread.start()
        self._running.append((placer, stopped, thread))

    def stop(self) -> None:
        for placer, stopped, thread in self._running:
            stopped.set()
            thread.join()
            placer.close()
        self._running.clear()

    def workers(self) -> dict[str, PlacedWorker]:
        return {worker.name: worker for worker in placed_workers.read(self.farm.queue)}

    def states(self) -> dict[str, str]:
        return {name: str(worker.state) for name, worker in self.workers().items()}

    def lives(self) -> dict[str, str]:
        return {one.worker: str(one.info["life"]) for one in self.farm.queue.sessions()}

    def until(self, condition: Callable[[], object]) -> None:
        until(condition, SECONDS)

    def all_are(self, state: WorkerState, count: int) -> None:
        wanted = {f"worker-{number}": str(state) for number in range(count)}
        self.until(lambda: self.states() == wanted and self.lives().keys() == wanted.keys())


@pytest.fixture
def schedulers(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Cluster
) -> Iterator[Schedulers]:
    schedulers = Schedulers(Farm(redis_url, tmp_path / "store", monkeypatch), cluster, tmp_path)
    yield schedulers
    schedulers.stop()


def finished(schedulers: Schedulers) -> Mapping[str, int]:
    return Counter(schedulers.trace.with_suffix(".finished").read_text().splitlines())


def test_workers_without_room_say_so_and_leave_a_node_that_is_drained(
    schedulers: Schedulers,
) -> None:
    """The second worker waits for a node; that is drained while it renders."""
    farm = schedulers.farm
    schedulers.start(WorkerGroup("worker", 2, 2), FARM_TRACE=str(schedulers.trace))
    schedulers.until(lambda: sorted(schedulers.states().values()) == ["pending", "running"])
    [waiting] = [one for one in schedulers.workers().values() if one.missing]
    assert waiting.why == "1 CPU must become free on a node of the cluster"
    cluster = schedulers.cluster
    node = cluster.say("add")
    schedulers.all_are(WorkerState.RUNNING, 2)
    jobs = [farm.submit(*(f"{job} {number}" for number in range(80))) for job in range(6)]
    schedulers.until(
        lambda: [one for one in farm.queue.sessions() if one.worker == waiting.name and one.held]
    )
    assert schedulers.workers()[waiting.name].node == node
    assert cluster.say(f"drain {node} 12") == "True"
    schedulers.until(lambda: schedulers.states()[waiting.name] == "pending")
    for job in jobs:
        farm.wait(job)
    assert set(finished(schedulers).values()) == {1}
    assert len(finished(schedulers)) == 80 * len(jobs)


def test_schedulers_that_differ_do_not_end_each_others_workers(schedulers: Schedulers) -> None:
    """The last one changes each worker once; what is not the workers' own changes none."""
    farm = schedulers.farm
    schedulers.start(WorkerGroup("worker", 2, 2, cpus=0.3))
    schedulers.all_are(WorkerState.RUNNING, 2)
    old = schedulers.lives()
    schedulers.start(WorkerGroup("worker", 2, 2, cpus=0.3), FARM_ROWS="16")
    schedulers.until(
        lambda: (
            schedulers.lives().keys() == old.keys()
            and not {*schedulers.lives().values()} & {*old.values()}
        )
    )
    schedulers.all_are(WorkerState.RUNNING, 2)
    new = schedulers.lives()
    schedulers.start(WorkerGroup("worker", 1, 1, cpus=0.3), FARM_ROWS="16", FARM_RETENTION_DAYS="8")
    job = farm.submit(*(str(number) for number in range(80)))
    schedulers.all_are(WorkerState.RUNNING, 1)
    farm.wait(job)
    assert schedulers.lives() == {"worker-0": new["worker-0"]}


def test_workers_come_with_the_work_and_go_after_it(schedulers: Schedulers) -> None:
    farm = schedulers.farm
    schedulers.start(WorkerGroup("worker", 1, 3, cpus=0.3), FARM_TRACE=str(schedulers.trace))
    schedulers.all_are(WorkerState.RUNNING, 1)
    jobs = [farm.submit(*(f"{job} {number}" for number in range(40))) for job in range(20)]
    schedulers.until(lambda: schedulers.trace.with_suffix(".finished").exists())
    held = schedulers.trace.with_suffix(".held")
    held.touch()  # so that the work is not done before they are there
    schedulers.all_are(WorkerState.RUNNING, 3)
    held.unlink()
    for job in jobs:
        until(lambda: farm.state(job) == "done", SECONDS)  # noqa: B023
    schedulers.all_are(WorkerState.RUNNING, 1)
    assert set(finished(schedulers).values()) == {1}
    assert len(finished(schedulers)) == 40 * len(jobs)


def test_an_end_leaves_no_worker_on_the_cluster(schedulers: Schedulers) -> None:
    """Not one of many, though the process that ends them lives no longer than it must."""
    schedulers.start(WorkerGroup("worker", 30, 30, cpus=0.5))
    schedulers.until(lambda: list(schedulers.states().values()).count("pending") == 28)
    schedulers.stop()
    assert schedulers.cluster.say("actors") == "0"
