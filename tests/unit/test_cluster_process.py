"""The scheduler's process that talks to Ray: it ends, hangs and starts again, without a Ray."""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import until

from farm.scheduler import cluster_process
from farm.scheduler.cluster_process import ClusterProcess

DRIVER = """
import pathlib, sys
said, heard = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
print(said.read_text(), end="", flush=True)
heard.write_text("".join(sys.stdin) + "the end")
"""


class Bench:
    """A driver that says what a file holds, and a port that stands for a cluster."""

    def __init__(self, folder: Path) -> None:
        self.reports: list[tuple[str, str]] = []
        self.dead: list[str] = []
        self.said, self.heard = folder / "said", folder / "heard"
        self.said.write_text("alive\n")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.cluster = ClusterProcess(
            [sys.executable, "-c", DRIVER, str(self.said), str(self.heard)],
            f"127.0.0.1:{self.port}",
            os.environ,
            report=lambda what, cause: self.reports.append((what, cause)),
        )

    def listen(self) -> socket.socket:
        return socket.create_server(("127.0.0.1", self.port))

    def look(self) -> int | None:
        self.dead += self.cluster.deaths()
        return self.cluster.pid


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(cluster_process, "RETRY_SECONDS", 0.05)
    bench = Bench(tmp_path)
    yield bench
    bench.cluster.close(end_workers=False)


def test_a_cluster_that_is_away_is_told_once_and_used_when_it_comes(bench: Bench) -> None:
    for _ in range(5):
        assert bench.look() is None
        time.sleep(0.06)
    assert bench.reports == [("ray", f"no cluster answers at 127.0.0.1:{bench.port}; trying again")]
    with bench.listen():
        until(bench.look)


def test_what_the_driver_says_of_workers_arrives(bench: Bench) -> None:
    bench.said.write_text("alive\ndead abc\ncannot worker-1 error[checkpoint]: it is cut\nalive\n")
    with bench.listen():
        until(lambda: bench.look() and bench.dead and bench.reports)
    assert bench.dead == ["abc"]
    assert bench.reports == [("worker-1", "error[checkpoint]: it is cut")]


def test_a_driver_that_dies_within_a_line_is_replaced(bench: Bench) -> None:
    """A list of many workers is longer than what the system writes at once."""
    bench.said.write_text('dead abc\nworkers [{"name": "worker-0", "sta')
    with bench.listen():
        until(lambda: bench.look() and bench.dead)
        first = bench.cluster.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        time.sleep(0.3)  # as the scheduler does between two looks
        until(lambda: bench.look() not in (None, first))


def test_a_driver_that_dies_is_replaced(bench: Bench) -> None:
    with bench.listen():
        until(bench.look)
        first = bench.cluster.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        until(lambda: bench.look() not in (None, first))
    ((what, cause),) = bench.reports
    assert what == "ray"
    assert "is lost: its driver ended with status -9" in cause


def test_a_driver_whose_call_does_not_return_is_replaced(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_process, "SILENT_SECONDS", 0.3)
    with bench.listen():
        until(bench.look)
        first = bench.cluster.pid
        until(lambda: bench.look() not in (None, first))
    assert "a call to it does not return" in bench.reports[0][1]


@pytest.mark.parametrize(("end", "heard"), [(True, "close\nthe end"), (False, "the end")])
def test_the_driver_hears_whether_workers_end_too(bench: Bench, end: bool, heard: str) -> None:
    with bench.listen():
        until(bench.look)
        bench.cluster.close(end_workers=end)
    assert bench.heard.read_text() == heard
