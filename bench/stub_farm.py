"""A farm whose engines draw nothing, for measurements: all of it but the model."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import psutil

from farm.local.ports import free_port
from farm.local.valkey import ServerProcess

CHECKPOINT = "shapes-64"
START_SECONDS = 120
SAMPLE_SECONDS = 0.5


class StubFarm:
    """A Valkey server, a gateway, a scheduler and workers, without Ray.

    ``memory`` has their resident memory in bytes, twice a second.

    Args:
        folder: for everything that it writes.
        workers: how many.
        store: its URL; by default a folder.
        rows: that an engine holds; by default as many as the stub takes.
        settings: of the processes, instead of their own; with REDIS_URL no server is started.
    """

    def __init__(
        self,
        folder: Path,
        workers: int = 1,
        store: str = "",
        *,
        rows: int = 0,
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        scheme = "https" if "FARM_TLS_CERT" in settings else "http"
        self.url = f"{scheme}://127.0.0.1:{free_port()}"
        self.store = store or str(folder / "store")
        self.memory: dict[str, list[int]] = {}
        self._folder = folder
        self._names = ["gateway", "scheduler", *(f"worker-{number}" for number in range(workers))]
        self._server = None if "REDIS_URL" in settings else ServerProcess(folder / "valkey")
        self._processes: dict[str, psutil.Popen] = {}
        self._closed = threading.Event()
        self._environment = {
            **os.environ,
            "REDIS_URL": self._server.url if self._server else "",
            "FARM_URL": self.url,
            "FARM_DATA": str(folder),
            "FARM_STORE": self.store,
            "FARM_PORT": self.url.rpartition(":")[2],
            "FARM_OPEN": "0" if "FARM_KEYS" in settings else "1",
            "FARM_CHECKPOINTS": CHECKPOINT,
            "FARM_STUB": "1",
            "FARM_ROWS": str(rows),
            **settings,
        }

    @contextlib.contextmanager
    def serving(self) -> Iterator["StubFarm"]:
        """Started and ended, by SIGTERM as well."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        with self._server.serving() if self._server else contextlib.nullcontext():
            try:
                for name in self._names:
                    self._start(name)
                self._await_ready()
                threading.Thread(target=self._watch, daemon=True).start()
                yield self
            finally:
                self._closed.set()
                for process in self._processes.values():
                    process.send_signal(signal.SIGTERM)
                for process in self._processes.values():
                    process.wait(60)

    def used(self) -> Mapping[str, float]:
        """Seconds of processor time that each process and its children have had."""
        return {name: sum(map(_seconds, family)) for name, family in self._families().items()}

    def threads(self, name: str) -> Mapping[str, float]:
        """Seconds of processor time of each thread of one process, by its name and number."""
        process, found = self._processes[name], {}
        for thread in process.threads():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                told = Path(f"/proc/{process.pid}/task/{thread.id}/comm").read_text().strip()
                found[f"{told} {thread.id}"] = thread.user_time + thread.system_time
        return found

    def _start(self, name: str) -> None:
        kind = name.partition("-")[0]
        arguments = ["farm.gateway"] if kind == "gateway" else ["farm.cli", kind]
        if kind == "worker":
            arguments += ["--name", name]
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = psutil.Popen(
                [sys.executable, "-P", "-m", *arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/readyz", timeout=5).close()
                return
            except (OSError, urllib.error.HTTPError):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no farm; see the logs in {self._folder}") from None
                time.sleep(0.1)

    def _families(self) -> dict[str, list[psutil.Process]]:
        found = {"valkey": [psutil.Process(self._server.pid)]} if self._server else {}
        for name, process in self._processes.items():
            found[name] = [process]
            for child in process.children():
                found[f"{name} {_module(child)}"] = [child]
        return found

    def _watch(self) -> None:
        while not self._closed.wait(SAMPLE_SECONDS):
            with contextlib.suppress(psutil.Error):
                for name, family in self._families().items():
                    held = sum(process.memory_info().rss for process in family)
                    self.memory.setdefault(name, []).append(held)


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _module(process: psutil.Process) -> str:
    return next((word for word in process.cmdline() if word.startswith("farm")), process.name())
