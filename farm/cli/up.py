"""``farm up`` and ``farm down``: a whole farm on this machine, started and ended."""

import contextlib
import fcntl
import json
import logging
import os
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import psutil
import typer
from rich.console import Console

from farm.cli.arguments import Data
from farm.cli.output import fetches_told
from farm.errors import Conflict, FarmError, Unavailable
from farm.paths import client_file, data_dir, make_private

if TYPE_CHECKING:
    from farm.local.embedded import Embedded
    from farm.local.plan import Plan

READY_SECONDS = 600.0  # a worker may have to build or load a large checkpoint
DOWN_SECONDS = 30.0
STARTED_BY = "FARM_STARTED_BY"  # in the environment: a token of the --detach that waits

console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)  # paths as they are


def up(
    data: Data = None,
    port: Annotated[
        int, typer.Option(help="The gateway's port on 127.0.0.1.", min=1, max=65535)
    ] = 8400,
    workers: Annotated[
        str,
        typer.Option(
            metavar="N|GROUPS",
            help="How many; 0: one per GPU, or one on the CPU. Or groups, such as "
            "amused-512:4xgpu,shapes-64:1-3xcpu, or a file with them.",
        ),
    ] = "0",
    min_workers: Annotated[
        int | None,
        typer.Option(
            envvar="FARM_MIN_WORKERS", help="Fewest workers while there is little to do.", min=0
        ),
    ] = None,
    max_workers: Annotated[
        int | None,
        typer.Option(
            envvar="FARM_MAX_WORKERS", help="Most workers while there is much to do.", min=1
        ),
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A diffusers directory, amused-256, amused-512 or a hub id@commit; repeatable.",
        ),
    ] = None,
    store: Annotated[
        str,
        typer.Option(
            metavar="URL", envvar="FARM_STORE", help="s3://bucket/prefix instead of a folder."
        ),
    ] = "",
    redis: Annotated[
        str,
        typer.Option(metavar="URL", envvar="REDIS_URL", help="Use this Redis or Valkey server."),
    ] = "",
    ray: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", envvar="RAY_ADDRESS", help="Place the workers on this Ray cluster."
        ),
    ] = "",
    single_writer: Annotated[
        bool,
        typer.Option(
            "--single-writer", help="Accept a store without create-if-absent; for one worker only."
        ),
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return once the farm is ready.")
    ] = False,
) -> None:
    """Start a farm on this machine: queue, store, Ray, scheduler, gateway and workers."""
    from farm.local.plan import Plan
    from farm.local.ports import check_port
    from farm.local.supervisor import sweep

    folder = (data or data_dir()).expanduser().resolve()
    make_private(folder)
    if detach:
        _detach(folder)
        return
    with lock(folder):
        sweep(folder)  # of a farm whose supervisor was killed
        check_port(port)
        plan = Plan(
            data=folder,
            port=port,
            workers=int(workers) if workers.isdecimal() else 0,
            groups="" if workers.isdecimal() else workers,
            min_workers=min_workers,
            max_workers=max_workers,
            checkpoints=tuple(checkpoint or ()),
            store=store,
            redis_url=redis,
            ray_address=ray,
            single_writer=single_writer,
        )
        with fetches_told():
            plan = plan.complete()
        _run(plan)


def down(data: Data = None) -> None:
    """End the farm that farm up started, and everything that belongs to it."""
    from farm.local.supervisor import sweep

    folder = (data or data_dir()).expanduser().resolve()
    supervisor = _holder(folder)
    if supervisor is not None:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(supervisor)
            process.terminate()
            try:
                process.wait(DOWN_SECONDS)
            except psutil.TimeoutExpired:
                process.kill()
    left = sweep(folder)
    for path in (folder / "run").glob("*.pid"):
        path.unlink(missing_ok=True)
    client_file(folder).unlink(missing_ok=True)
    if supervisor is None and not left:
        console.print(f"no farm runs in {folder}")
    else:
        console.print(f"the farm in {folder} has ended")


def _run(plan: "Plan") -> None:
    """Everything from the first process to the last, in the foreground."""
    from farm.disk import put_whole
    from farm.local.embedded import RAY_FILE, Embedded
    from farm.local.supervisor import Supervisor, sweep

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stopped.set())
    supervisor = Supervisor(plan.data, stopped)
    farm = Embedded(plan)
    put_whole(plan.data / "run" / "up.pid", f"{os.getpid()}\n".encode())
    try:
        _check_workers_settings(farm)
        if farm.unheeded:
            names = ", ".join(farm.unheeded)
            console.print(f"farm up sets these itself, so yours do not count: {names}")
        for service in farm.services():
            supervisor.start(service)
            if service.name == "valkey":
                _release(farm.redis_url)  # no process is left that held anything
        known = {"url": plan.url, "checkpoints": plan.checkpoints}
        client_file(plan.data).write_text(json.dumps(known) + "\n")
        _announce(plan, farm.dashboard)
        # Last: farm up --detach prints what is above it.
        (plan.data / "run" / "ready").write_text(os.environ.get(STARTED_BY, "") + "\n")
        supervisor.watch()
    except KeyboardInterrupt:
        stopped.set()
    finally:
        with contextlib.suppress(OSError):  # its log may lie on a full disk
            console.print("stopping")
        for name in ("ready", "up.pid", RAY_FILE):
            (plan.data / "run" / name).unlink(missing_ok=True)
        client_file(plan.data).unlink(missing_ok=True)
        for name in ("scheduler", "ray"):
            supervisor.stop(name)
        if "valkey" in supervisor.names:
            _release(farm.redis_url)
        for name in ("gateway", "valkey"):
            supervisor.stop(name)
        sweep(plan.data)
        farm.clean()


def _check_workers_settings(farm: "Embedded") -> None:
    """What a worker would refuse is told now, not when Ray has started it."""
    from farm.settings import load
    from farm_workers.worker.settings import WorkerSettings

    load(WorkerSettings, redis_url=farm.redis_url, checkpoints=farm.plan.checkpoints)


def _announce(plan: "Plan", dashboard: str | None) -> None:
    console.print(f"ready: {plan.url} with {', '.join(plan.checkpoints)}")
    if dashboard:
        token = plan.data / "run" / "ray-token"
        console.print(f"Ray's dashboard: {dashboard} (its token: {token})")
        console.print("farm dashboard prints a link that opens it without the token")
    if plan.data != data_dir():
        console.print(f"in another terminal: export FARM_DATA={shlex.quote(str(plan.data))}")
    if keys := os.environ.get("FARM_KEYS"):
        console.print(f"it asks for a key of {keys}: export FARM_API_KEY=…")
    _say_what_it_draws(plan)


def _say_what_it_draws(plan: "Plan") -> None:
    from farm.checkpoints.inspect import inspect_checkpoint

    found = [inspect_checkpoint(one, plan.data) for one in plan.checkpoints]
    for one in found:
        if one.description:
            console.print(f"{one.info.id}: {one.description}")
    console.print(f'try: farm submit "{found[0].info.example}" --seed 7 -o out')


def _release(redis_url: str) -> None:
    """Give back what the ended workers held, so that the next start continues at once."""
    from farm.queue import Queue, connect

    with contextlib.suppress(FarmError):
        queue = Queue(connect(redis_url), farm=os.environ.get("FARM_NAME", "farm"))
        for session in queue.sessions():
            queue.end(session.session, "drain")


def _detach(folder: Path) -> None:
    """Run ``farm up`` again as a process of its own and wait until it is ready."""
    if (holder := _holder(folder)) is not None:
        raise _running(folder, holder)
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    arguments = [argument for argument in sys.argv[1:] if argument != "--detach"]
    token = secrets.token_hex(16)  # a process id may have been another farm's before
    (logs / "up.log").unlink(missing_ok=True)
    with (logs / "up.log").open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "farm.cli", *arguments],
            env={**os.environ, STARTED_BY: token},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _await_ready(process, folder, token)
    except BaseException:
        process.terminate()
        process.wait(DOWN_SECONDS)
        raise
    told = (logs / "up.log").read_text(encoding="utf-8", errors="replace").strip()
    console.print(told)


def _await_ready(process: "subprocess.Popen[bytes]", folder: Path, token: str) -> None:
    ready, log = folder / "run" / "ready", folder / "logs" / "up.log"
    deadline = time.monotonic() + READY_SECONDS
    while not (ready.exists() and ready.read_text().strip() == token):
        if process.poll() is not None:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            told = [line for line in lines if line.startswith("error")] or lines or ["no output"]
            console.print(told[-1])
            raise typer.Exit(process.returncode or 1)
        if time.monotonic() > deadline:
            raise Unavailable(f"the farm was not ready in {READY_SECONDS:.0f} s", hint=str(log))
        time.sleep(0.1)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[IO[str]]:
    """One farm per data directory; the lock goes with the process, however it ends."""
    run = folder / "run"
    run.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (run / "up.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise _running(folder, _holder(folder)) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield file


def _holder(folder: Path) -> int | None:
    """The process that runs the farm in ``folder``; None if its lock is free."""
    path = folder / "run" / "up.lock"
    if not path.exists():
        return None
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            text = file.read().strip()
            return int(text) if text else None
    return None


def _running(folder: Path, pid: int | None) -> Conflict:
    return Conflict(f"a farm already runs in {folder} (pid {pid})", hint="end it with farm down")
