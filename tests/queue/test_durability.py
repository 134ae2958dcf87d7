"""What was acknowledged survives the server."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from queue_bench import Bench

from farm.errors import Unavailable
from farm.job import JobState
from farm.local.valkey import ServerProcess
from farm.queue import Queue, connect

DEEP = bool(os.environ.get("FARM_DEEP"))
SERVERS = 8  # at a time; each waits for its disk, its child and its start most of the time


def open_bench(server: ServerProcess) -> Bench:
    return Bench(Queue(connect(server.url)))


@pytest.fixture
def server(folder: Path, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    path = folder / f"durable-{abs(hash(request.node.name)) % 10**6}"
    server = ServerProcess(path)
    with server.serving():
        yield server


def newest_file(data: Path) -> Path:
    return max((data / "appendonlydir").glob("*.incr.aof"), key=lambda file: file.name)


def test_acknowledged_submissions_survive_a_sigkill_of_the_server(server: ServerProcess) -> None:
    bench = open_bench(server)
    jobs = [bench.submit(2) for _ in range(20)]
    session = bench.session()
    [lease] = bench.lease(session, limit=1)
    server.kill()
    server.start()
    server.ready()
    bench = open_bench(server)
    assert all(bench.queue.status(job, "ann").tasks.total == 2 for job in jobs)
    assert bench.queue.held(session) == [lease]
    assert bench.complete(session, lease) == "committed"
    assert bench.queue.check(repair=False) == []


@pytest.mark.slow
def test_a_file_torn_in_its_last_transaction_loses_nothing_acknowledged(
    server: ServerProcess, folder: Path
) -> None:
    """Cut at each of its bytes, or some, started, written to, killed and started once more."""
    bench = open_bench(server)
    kept = [bench.submit(1) for _ in range(3)]
    file = newest_file(server.data)
    before = file.stat().st_size
    bench.queue.cancel(kept[-1], "ann")  # ten commands in a kilobyte
    after = file.stat().st_size
    server.stop()
    assert file.read_bytes()[before:].startswith(b"*1\r\n$5\r\nMULTI\r\n")
    name = file.relative_to(server.data)

    def survives(cut: int) -> None:
        torn = folder / f"torn-{cut}"
        shutil.copytree(server.data / name.parent, torn / name.parent)
        os.truncate(torn / name, cut)
        again = ServerProcess(torn)
        with again.serving():
            bench = open_bench(again)
            later = bench.submit(1, tenant="bob")
            again.kill()
            again.start()
            again.ready()
            bench = open_bench(again)
            for job in kept:
                assert bench.queue.status(job, "ann").state is JobState.QUEUED, f"cut at {cut}"
            assert bench.queue.status(later, "bob").state is JobState.QUEUED, f"cut at {cut}"
            assert bench.queue.check(repair=False) == [], f"cut at {cut}"
            again.kill()
        shutil.rmtree(torn)

    with ThreadPoolExecutor(SERVERS) as pool:
        list(pool.map(survives, sorted(_cuts(file.read_bytes()[:after], before))))


def _cuts(data: bytes, start: int) -> set[int]:
    """All places from ``start`` on, or those around the ends of lines, where a reader of the file
    takes another way."""
    if DEEP:
        return set(range(start, len(data)))
    ends = [at for at in range(start, len(data)) if data[at : at + 2] == b"\r\n"]
    commands = [at for at in ends if data[at + 2 : at + 3] == b"*"]
    places = [*(at + step for at in commands for step in range(-1, 4)), *ends[::5]]
    return {start, *(at for at in places if start < at < len(data))}


def test_the_server_is_for_its_user_only(server: ServerProcess) -> None:
    assert server.socket.stat().st_mode & 0o777 == 0o700
    assert server.data.stat().st_mode & 0o777 == 0o700
    assert open_bench(server).queue.client.config_get("port") == {"port": "0"}


def test_a_second_server_on_the_same_folder_is_refused(server: ServerProcess) -> None:
    second = ServerProcess(server.data)
    with pytest.raises(Unavailable, match=r"already runs on "), second.serving():
        pass
    assert server.running


def test_a_folder_is_locked_by_its_server_until_it_is_dead_however_it_dies(
    server: ServerProcess,
) -> None:
    bench = open_bench(server)
    job = bench.submit(1)
    server.socket.unlink()  # a server that does not answer is not a server that has ended
    with pytest.raises(Unavailable, match="already"), ServerProcess(server.data).serving():
        pass
    bench.queue.client.bgrewriteaof()  # its child does not inherit the lock
    server.kill()
    with ServerProcess(server.data).serving() as again:
        assert open_bench(again).queue.status(job, "ann").tasks.total == 1


def test_a_server_that_cannot_start_says_why(folder: Path) -> None:
    server = ServerProcess(folder / "broken", options=("--maxmemory", "much"))
    with pytest.raises(Unavailable, match=r"ended: .*maxmemory"), server.serving():
        pass
    deep = ServerProcess(folder / ("x" * 100))
    with pytest.raises(Unavailable, match="too long for a socket's path"):
        deep.start()
