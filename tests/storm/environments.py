"""What a storm runs in: plain processes, or a farm on Ray as ``farm up`` makes it."""

import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import psutil
from processes import Member, ProcessGroup, send

from farm.local.ports import free_port
from farm.local.supervisor import members
from farm.local.valkey import ServerProcess
from farm_workers.testing.tiny import make_tiny

HERE = Path(__file__).parent
WORKERS = 2
LEASE_MS = 4000
RAY_PROGRAMS = ("gcs_server", "raylet")  # those that ``ray start`` runs
CHILDREN = {
    "publisher": "farm_workers.publisher.process",
    "crash_reporter": "farm_workers.worker.crash_reporter",
}


class Environment(Protocol):
    victims: Mapping[str, int]  # of its own, with how often each is chosen
    url: str  # of the gateway
    redis_url: str
    store: Path

    def start(self, submitter: Member) -> None: ...
    def pids(self, victim: str) -> list[int]: ...
    def kill_server(self) -> None: ...
    def submitted(self) -> bool: ...
    def close(self) -> None: ...


def variables(folder: Path, faults: str) -> dict[str, str]:
    """What all processes of a farm in a storm are told."""
    return {
        "FARM_LEASE_MS": str(LEASE_MS),
        "FARM_ROWS": "4",
        "FARM_TILE": "4",
        "FARM_THREADS": "1",
        "FARM_FAULTS": faults,
        "FARM_TRACE": str(folder / "trace"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
    }


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.1)


def children(pids: list[int], words: str) -> list[int]:
    """What processes have started, known by a part of its command line."""
    found = []
    for pid in pids:
        try:
            found += [
                child.pid for child in psutil.Process(pid).children() if words in child.cmdline()
            ]
        except psutil.Error:  # gone since it was listed
            continue
    return found


class ProcessEnvironment:
    """A server, a gateway, two schedulers and two workers, without Ray."""

    victims: Mapping[str, int] = {}

    def __init__(self, folder: Path, faults: str) -> None:
        self._folder = folder
        self._server = ServerProcess(folder / "valkey")
        self.url = f"http://127.0.0.1:{free_port()}"
        self.redis_url = self._server.url
        self.store = folder / "store"
        logs = folder / "logs"
        logs.mkdir()
        self._group = ProcessGroup(
            {
                **variables(folder, faults),
                "REDIS_URL": self.redis_url,
                "FARM_URL": self.url,
                "FARM_DATA": str(folder),
                "FARM_STORE": str(self.store),
                "FARM_HOST": "127.0.0.1",
                "FARM_PORT": self.url.rsplit(":", 1)[1],
                "FARM_OPEN": "1",
                "FARM_CHECKPOINTS": str(folder / "tiny"),
            },
            logs,
        )

    def start(self, submitter: Member) -> None:
        make_tiny(self._folder / "tiny", num_hidden_layers=1, size=64)
        self._server.start()
        self._server.ready()
        python = [sys.executable, "-P", "-m"]
        self._group.start(Member("gateway", [*python, "farm.gateway"]))
        for number in range(2):
            self._group.start(Member(f"scheduler-{number}", [*python, "farm.cli", "scheduler"]))
        for number in range(WORKERS):
            self._group.start(Member(f"worker-{number}", function="farm.cli.worker:worker"))
        until(lambda: _answers(f"{self.url}/readyz"), 180, "the farm does not start")
        self._group.start(submitter)

    def pids(self, victim: str) -> list[int]:
        if victim in CHILDREN:
            return children(self.pids("worker"), CHILDREN[victim])
        found = [self._group.pid(name) for name in self._group.names(victim)]
        return [pid for pid in found if pid is not None]

    def kill_server(self) -> None:
        self._server.kill()
        time.sleep(random.choice([0.0, 0.5, 3.0]))
        self._server.start()
        self._server.ready()

    def submitted(self) -> bool:
        return self._group.ended("submitter")

    def close(self) -> None:
        self._group.close()
        self._server.stop()


class RayEnvironment:
    """``farm up``: its supervisor starts again what dies, Ray the actors."""

    victims: Mapping[str, int] = {"ray": 1, "gcs_server": 1, "raylet": 1}

    def __init__(self, folder: Path, faults: str) -> None:
        self._folder = folder
        self._data = folder / "farm"
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.redis_url = ServerProcess(self._data / "valkey").url
        self.store = self._data / "store"
        self._variables = {**variables(folder, faults), "FARM_URL": self.url}
        logs = folder / "logs"
        logs.mkdir()
        self._group = ProcessGroup(self._variables, logs)

    def start(self, submitter: Member) -> None:
        make_tiny(self._folder / "tiny", num_hidden_layers=1, size=64)
        self._farm(
            *("up", "--data", self._data, "--port", self._port, "--workers", WORKERS),
            *("--checkpoint", self._folder / "tiny", "--detach"),
        )
        self._group.start(submitter)

    def pids(self, victim: str) -> list[int]:
        if victim in CHILDREN:
            return children(self.pids("worker"), CHILDREN[victim])
        if victim == "submitter":
            pid = self._group.pid(victim)
            return [] if pid is None else [pid]
        if victim in RAY_PROGRAMS:
            return [one.pid for one in members(self._data) if one.name() == victim]
        told = {int(file.read_text()) for file in (self._data / "run").glob(f"{victim}*.pid")}
        return [process.pid for process in members(self._data) if process.pid in told]

    def kill_server(self) -> None:
        until(lambda: self.pids("valkey"), 60, "the server is not there")
        before = self.pids("valkey")
        for pid in before:
            send(pid, signal.SIGKILL)
        until(lambda: self.pids("valkey") not in ([], before), 60, "the server does not come back")

    def submitted(self) -> bool:
        return self._group.ended("submitter")

    def close(self) -> None:
        self._group.close()
        self._farm("down", "--data", self._data)

    def _farm(self, *words: object) -> None:
        subprocess.run(
            [sys.executable, "-m", "farm.cli", *map(str, words)],
            env={**os.environ, **self._variables},
            check=True,
        )


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
