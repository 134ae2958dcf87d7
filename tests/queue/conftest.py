"""A real server on a socket of its own."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from queue_bench import Bench, moved_clock

from farm.errors import Unavailable
from farm.local.valkey import ServerProcess, find_server
from farm.queue import Queue, connect
from farm.queue.scripts import read_scripts


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A short path: a socket's may have a hundred characters."""
    path = Path(tempfile.mkdtemp(prefix="farm-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def server(folder: Path) -> Iterator[ServerProcess]:
    try:
        find_server()
    except Unavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    with ServerProcess(folder / "shared", options=("--enable-debug-command", "yes")).serving() as s:
        yield s


@pytest.fixture
def client(server: ServerProcess) -> Iterator["redis.Redis"]:
    client = connect(server.url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def queue(client: "redis.Redis") -> Queue:
    # As after the first submission to a server that has just started.
    client.hset("{farm}:server", "settled", client.info("server")["run_id"])
    return Queue(client, scripts=moved_clock(read_scripts()))


@pytest.fixture
def bench(queue: Queue) -> Iterator[Bench]:
    """Whatever a test did, the counters equal a recount."""
    yield Bench(queue)
    assert queue.check(repair=False) == []
