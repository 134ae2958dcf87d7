"""A real server on a socket of its own, directly or behind a proxy that loses replies."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from fault_proxy import FaultProxy
from queue_bench import Bench, moved_clock

from farm.local.valkey import ServerProcess
from farm.queue import Queue, connect
from farm.queue.scripts import read_scripts

USERS = Path(__file__).parents[2] / "infra" / "valkey" / "users.acl"
TESTS_MAY = ("~{*}:*", "+keys", "+config", "+replicaof", "+client|kill")  # besides


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A short path: a socket's may have a hundred characters."""
    path = Path(tempfile.mkdtemp(prefix="farm-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def server(folder: Path) -> Iterator[ServerProcess]:
    with ServerProcess(folder / "shared", options=("--enable-debug-command", "yes")).serving() as s:
        words = USERS.read_text("utf-8").replace("#PASSWORD_SHA256", ">password").splitlines()[1]
        connect(s.url).execute_command("ACL", "SETUSER", *words.split()[1:], *TESTS_MAY)
        yield s


@pytest.fixture
def client(server: ServerProcess) -> Iterator["redis.Redis"]:
    client = connect(server.url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def queue(client: "redis.Redis", server: ServerProcess) -> Iterator[Queue]:
    """With the rights of a farm on several machines, whose users are in ``infra``."""
    # As after the first submission to a server that has just started.
    client.hset("{farm}:server", "settled", client.info("server")["run_id"])
    farm = connect(server.url.replace("//", "//farm:password@"))
    yield Queue(farm, scripts=moved_clock(read_scripts()))
    farm.close()


@pytest.fixture
def bench(queue: Queue) -> Iterator[Bench]:
    """Whatever a test did, the counters equal a recount."""
    yield Bench(queue)
    assert queue.check(repair=False) == []


@pytest.fixture
def proxy(server: ServerProcess) -> Iterator[FaultProxy]:
    with FaultProxy(server.socket) as proxy:
        yield proxy


@pytest.fixture
def far(proxy: FaultProxy, queue: Queue) -> Iterator[Queue]:
    """The queue behind the proxy; its connection is open, and the server knows its scripts."""
    client = connect(f"redis://{proxy.address}/0")
    scripts = moved_clock(read_scripts())
    queue = Queue(client, scripts=scripts)
    for script in scripts.values():
        client.script_load(script)
    yield queue
    client.close()


@pytest.fixture
def own(folder: Path) -> Iterator[ServerProcess]:
    """A server that a test may do anything to."""
    server = ServerProcess(folder / f"own-{os.urandom(4).hex()}")
    with server.serving():
        yield server
    shutil.rmtree(server.data)
