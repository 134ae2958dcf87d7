"""A small disk is filled and freed while jobs come in and run: ``--rounds 20``, as root.

The queue's server, the store and the logs lie on a tmpfs of a few MiB. A supervisor keeps server,
gateway, scheduler and worker. After every round one server runs on the folder, what was
acknowledged is there, and in the end everything starts once more and every job is done.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "gateway"))
sys.path.insert(0, str(Path(__file__).parent))

from damage import INFO
from environments import until
from fake_worker import FakeWorker

from farm.checkpoints.registry import CheckpointRegistry
from farm.errors import FarmError
from farm.ingest.assets import Assets
from farm.ingest.ingest import Ingest
from farm.ingest.ndjson import Entries, Entry
from farm.job import JobOptions
from farm.local.supervisor import Service, Supervisor, sweep
from farm.local.valkey import ServerProcess
from farm.queue import Queue, connect
from farm.store import open_store

SIZE = "24m"
FULL_SECONDS = 2.0
BACK_SECONDS = 60.0


@contextlib.contextmanager
def small_disk() -> Iterator[Path]:
    """A file system of ``SIZE``; only root may mount one."""
    with tempfile.TemporaryDirectory(prefix="farm-") as made:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "farm", made]
        subprocess.run(mount, check=True, capture_output=True)
        try:
            yield Path(made)
        finally:
            subprocess.run(["umount", "-l", made], check=True)


class Client:
    """Submits without a pause, and remembers what was acknowledged."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self._stopped = threading.Event()
        self.acknowledged: list[str] = []
        self.refused = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stopped.wait(0.02):
            number += 1
            try:
                entries = Entries.of([entry(number)])
                job = self._ingest.submit("ann", JobOptions(seed=number), entries).job
            except FarmError:
                self.refused += 1
            else:
                self.acknowledged.append(job)


class Worker(FakeWorker):
    """Goes on after what a full disk refused."""

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                super()._run()
            except FarmError:
                self._stop.wait(0.2)
                with contextlib.suppress(FarmError):
                    facts = {"checkpoints": [self.info.model_dump()]}
                    self.queue.register(self.session, "fake", [self.info.name], facts)


def entry(number: int) -> Entry:
    return Entry({"prompt": f"picture {number}", "num_inference_steps": 2})


def fill(disk: Path) -> Path:
    """Take every byte that is left, also while others look for some."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as out:
        end = time.monotonic() + FULL_SECONDS
        while time.monotonic() < end:
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while out.write(b"x" * size):
                        pass
            time.sleep(0.01)
    return filler


def servers(data: Path) -> list[int]:
    """Processes of servers that work in a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if str(data) in words and "valkey-server" in words[0]:
                parent = process.parent()
                if parent is None or "valkey-server" not in " ".join(parent.cmdline()[:1]):
                    found.append(process.pid)
    return found


def run(rounds: int) -> str:
    """Raises AssertionError where something was lost, or more than one server ran."""
    with small_disk() as disk:
        data = ServerProcess(disk / "valkey", options=("--logfile", ""))
        data.data.mkdir(mode=0o700)
        stopped = threading.Event()
        supervisor = Supervisor(disk, stopped)
        store = open_store(str(disk / "store"))

        def answers() -> bool:
            with contextlib.suppress(FarmError):
                Queue(connect(data.url)).sessions()
                return True
            return False

        service = Service("valkey", data.arguments(), ready=answers)
        supervisor.start(service)
        watcher = threading.Thread(target=supervisor.watch, daemon=True)
        watcher.start()
        queue = Queue(connect(data.url))
        client = Client(Ingest(queue, store, CheckpointRegistry([INFO]), Assets(store)))
        worker = Worker(queue, store, INFO)
        worker.start()
        try:
            deaths = 0
            for number in range(rounds):
                (first,) = servers(data.data)
                before = len(client.acknowledged)
                until(lambda b=before: len(client.acknowledged) > b + 3, BACK_SECONDS, "no job")
                filler = fill(disk)
                running = servers(data.data)
                assert len(running) <= 1, f"round {number}: servers {running} on one folder"
                filler.unlink()
                until(answers, BACK_SECONDS, "the server does not come back")
                assert len(servers(data.data)) == 1, f"round {number}: {servers(data.data)}"
                deaths += servers(data.data) != [first]
                known = {status.id for status in jobs(queue)}
                lost = set(client.acknowledged[: before + 1]) - known
                assert not lost, f"round {number}: {lost} are lost"
            assert deaths, "the disk was never so full that the server ended"
            client.stop()
            until(lambda: all(one.ended_at for one in jobs(queue)), BACK_SECONDS, "jobs do not end")
            worker.stop()
            stopped.set()
            watcher.join()
            supervisor.stop("valkey")
            assert servers(data.data) == []
            with data.serving():
                again = Queue(connect(data.url))
                states = {status.id: status for status in jobs(again)}
                lost = set(client.acknowledged) - states.keys()
                assert not lost, f"{lost} are lost"
                assert {str(states[job].state) for job in client.acknowledged} == {"done"}
                assert again.check(repair=False) == []
        finally:
            stopped.set()
            sweep(disk)
    return (
        f"{rounds} rounds: {len(client.acknowledged)} jobs acknowledged, all done; "
        f"the server ended in {deaths}; {client.refused} refused while the disk "
        "was full; never more than one server"
    )


def jobs(queue: Queue) -> list:  # type: ignore[type-arg]
    found, before = [], None
    while page := queue.jobs("ann", 200, before):
        found += page
        before = page[-1].id
    return found


def may_mount() -> bool:
    if os.geteuid() != 0 or sys.platform != "linux":
        return False
    try:
        with small_disk():
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def main() -> int:
    options = argparse.ArgumentParser(description="Fill and free a small disk under a farm.")
    options.add_argument("--rounds", type=int, default=20)
    print(run(options.parse_args().rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
