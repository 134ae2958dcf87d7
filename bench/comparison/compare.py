"""The farm's queue beside RQ, Celery and Dramatiq, on one server that syncs every write.

    python bench/comparison/compare.py [--venv FOLDER] [--rounds N] [--json FILE]

The others are installed into a virtual environment of their own.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from farm.local.valkey import ServerProcess
from farm.queue import check_server, connect

HERE = Path(__file__).resolve().parent
CLIENTS = 4  # threads that submit
WORKERS = 2  # processes
WARM = 200  # tasks
LIMIT_SECONDS = 300.0
POLL_SECONDS = 0.005


class Contender(NamedTuple):
    name: str
    bulk: int  # tasks submitted while no worker runs
    tasks: int  # from submission to the end
    worker: list[str]
    processes: int  # of this command


CONTENDERS = (
    Contender("rq", 10_000, 400, ["rq_side.py", "work"], WORKERS),
    Contender(
        "celery",
        4_000,
        1_000,
        [
            *("-m", "celery", "-A", "celery_side", "worker", "-P", "solo", "-l", "ERROR"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        ],
        WORKERS,
    ),
    Contender(
        "dramatiq",
        4_000,
        2_000,
        ["-m", "dramatiq", "dramatiq_side", "--processes", str(WORKERS), "--threads", "8"],
        1,
    ),
    Contender("farm", 100_000, 40_000, ["farm_side.py", "work"], WORKERS),
)


class Rates(NamedTuple):
    """Tasks a second."""

    bulk: float
    end_to_end: float


class Bench:
    """One queue's processes, on the shared server."""

    def __init__(self, contender: Contender, python: str, url: str, folder: Path) -> None:
        self.contender = contender
        self.python = python
        self.log = folder / f"{contender.name}.log"
        self.ran = folder / f"{contender.name}.ran"
        self.ran.write_bytes(b"")
        self.environment = {**os.environ, "COMPARE_REDIS": url, "COMPARE_RAN": str(self.ran)}

    def run(self, arguments: list[str], **options: object) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
                [self.python, *arguments],
                cwd=HERE,
                env=self.environment,
                stderr=log,
                **{"stdout": log, **options},
            )

    def submit(self, client: subprocess.Popen[bytes], tasks: int) -> float:
        """Returns the seconds it took."""
        assert client.stdin
        assert client.stdout
        client.stdin.write(f"{tasks}\n".encode())
        client.stdin.flush()
        told = client.stdout.readline()
        if not told:
            raise SystemExit(f"{self.contender.name} ended: see {self.log}")
        return float(told)

    def wait(self, tasks: int) -> None:
        end = time.monotonic() + LIMIT_SECONDS
        while self.ran.stat().st_size < tasks:
            if time.monotonic() > end:
                raise SystemExit(f"{self.contender.name} is not done: see {self.log}")
            time.sleep(POLL_SECONDS)

    @contextlib.contextmanager
    def client(self) -> Iterator[subprocess.Popen[bytes]]:
        submit = [f"{self.contender.name}_side.py", "submit", str(CLIENTS)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with self.run(submit, **pipes) as client:
            assert client.stdin
            assert client.stdout
            client.stdout.readline()
            yield client
            client.stdin.close()

    @contextlib.contextmanager
    def workers(self) -> Iterator[None]:
        workers = [self.run(self.contender.worker) for _ in range(self.contender.processes)]
        try:
            yield
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                try:
                    worker.wait(10)
                except subprocess.TimeoutExpired:
                    worker.kill()
                    worker.wait()


def measure(bench: Bench, flush: Callable[[], object]) -> Rates:
    tasks = bench.contender.tasks
    with bench.client() as client:
        bench.submit(client, WARM)
        bulk = bench.contender.bulk / bench.submit(client, bench.contender.bulk)
    flush()
    with bench.workers(), bench.client() as client:
        before = bench.ran.stat().st_size
        bench.submit(client, WARM)
        bench.wait(before + WARM)
        start = time.perf_counter()
        bench.submit(client, tasks)
        bench.wait(before + WARM + tasks)
        end_to_end = tasks / (time.perf_counter() - start)
    flush()
    return Rates(bulk, end_to_end)


def install(folder: Path) -> str:
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(HERE / "requirements.txt")], check=True)
    return str(python)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, help="made if missing, kept; else a temporary one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="one of them")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="farm-compare-") as data,
        ServerProcess(Path(data) / "valkey").serving() as server,
    ):
        others = install(arguments.venv or Path(data) / "venv")
        client = connect(server.url)
        version = check_server(client).version
        benches = [
            Bench(one, sys.executable if one.name == "farm" else others, server.url, Path(data))
            for one in CONTENDERS
            if arguments.only in (None, one.name)
        ]
        rates: dict[str, list[Rates]] = {bench.contender.name: [] for bench in benches}
        for _ in range(arguments.rounds):
            for bench in benches:  # in turns: whatever else the machine does hits all of them
                rates[bench.contender.name].append(
                    measure(bench, lambda: client.execute_command("FLUSHALL", "SYNC"))
                )
        load = os.getloadavg()[0]
    print(f"valkey {version}, appendfsync always; {CLIENTS} client threads, {WORKERS} workers")
    report: dict[str, object] = {
        "server": f"valkey {version}, appendfsync always",
        "machine": f"{os.cpu_count()} shared cores, load average {load:.1f}",
        "clients": CLIENTS,
        "workers": WORKERS,
        "rounds": arguments.rounds,
    }
    for name, measured in rates.items():
        middle = Rates(*(statistics.median(column) for column in zip(*measured, strict=True)))
        print(f"{name:10} submitted {middle.bulk:9,.0f} tasks/s", end="   ")
        print(f"end to end {middle.end_to_end:9,.0f} tasks/s")
        report[name] = {key: round(value) for key, value in middle._asdict().items()}
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
