"""What the Redis server itself refuses, and what the farm makes of it."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from queue_bench import Bench, until_heard

from farm.errors import FarmError, QueueFull, Unavailable
from farm.local.valkey import ServerProcess
from farm.queue import Queue, connect, connection


def refusal(call: Callable[[], object]) -> FarmError:
    with pytest.raises(Unavailable) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert caught.value.retryable
    return caught.value


def test_oom_lets_no_new_work_in_and_the_old_end(own: ServerProcess) -> None:
    client = connect(own.url)
    bench = Bench(Queue(client))
    bench.submit(1)
    session = bench.session()
    client.config_set("maxmemory", 1)
    error = refusal(lambda: bench.submit(1))
    assert isinstance(error, QueueFull)
    assert "no memory left" in error.message
    assert "maxmemory" in str(error.hint)
    [lease] = bench.lease(session)
    assert bench.complete(session, lease) == "committed"
    client.config_set("maxmemory", 0)
    bench.submit(1)


def test_readonly_names_the_primary(own: ServerProcess) -> None:
    client = connect(own.url)
    bench = Bench(Queue(client))
    client.replicaof("127.0.0.1", 1)
    error = refusal(lambda: bench.submit(1))
    assert "read-only replica" in error.message
    assert "primary" in str(error.hint)
    client.replicaof("NO", "ONE")
    bench.submit(1)


def test_busy_passes(own: ServerProcess) -> None:
    client = connect(own.url)
    bench = Bench(Queue(client))
    bench.submit(1)
    client.config_set("busy-reply-threshold", 20)
    endless = redis.Redis.from_url(own.url, socket_timeout=30).register_script("while 1 do end")

    def hog() -> None:
        with pytest.raises(redis.ResponseError, match="killed"):
            endless()

    hogging = threading.Thread(target=hog)
    hogging.start()
    time.sleep(0.2)
    try:
        error = refusal(lambda: bench.submit(1))
        assert "busy with a script" in error.message
    finally:
        client.script_kill()
        hogging.join()
    bench.submit(1)


def test_misconf_names_the_disk(folder: Path) -> None:
    """A snapshot cannot be saved, because its place is taken by a folder."""
    server = ServerProcess(folder / "misconf", options=("--save", "3600 1"))
    (server.data / "dump.rdb").mkdir(parents=True)
    with server.serving():
        client = connect(server.url)
        bench = Bench(Queue(client))
        bench.submit(1)
        client.bgsave()
        while client.info("persistence")["rdb_bgsave_in_progress"]:
            time.sleep(0.01)
        error = refusal(lambda: bench.submit(1))
        assert "cannot save its data" in error.message
        assert "disk" in str(error.hint)
        client.config_set("stop-writes-on-bgsave-error", "no")
        bench.submit(1)
        server.kill()  # it would not end without a snapshot


def test_noscript_is_not_noticed(bench: Bench, queue: Queue) -> None:
    session = bench.session()
    for _ in range(3):
        queue.client.script_flush()
        bench.submit(1)
    queue.client.script_flush()
    assert len(bench.lease(session)) == 3


def test_scripts_that_are_flushed_at_once_are_named(
    bench: Bench, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = queue.client.script_load

    def load_and_flush(script: str) -> Any:
        loaded = load(script)
        queue.client.script_flush()
        return loaded

    monkeypatch.setattr(queue.client, "script_load", load_and_flush)
    queue.client.script_flush()
    error = refusal(lambda: bench.submit(1))
    assert "forgets the farm's scripts" in error.message
    assert "SCRIPT FLUSH" in str(error.hint)
    monkeypatch.undo()
    bench.submit(1)


def test_loading_is_waited_for_and_named_when_it_takes_long(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "RETRIES", 1)
    data = folder / "loading"
    with ServerProcess(data).serving() as server:
        bench = Bench(Queue(connect(server.url)))
        job = bench.submit(1)
        client = bench.queue.client
        for number in range(100):
            client.set(f"ballast:{number}", "x" * 5000)
        client.bgrewriteaof()
        while client.info("persistence")["aof_rewrite_in_progress"]:
            time.sleep(0.01)
    slow = ServerProcess(
        data,
        # Twenty milliseconds for each key, and an ear for clients after each kilobyte.
        options=("--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024"),
    )
    slow.start()
    try:
        while not slow.socket.exists():
            time.sleep(0.01)
        queue = Queue(connect(slow.url))
        error = refusal(lambda: queue.status(job, "ann"))
        assert "loading its data" in error.message
        assert until_heard(lambda: queue.status(job, "ann")).tasks.total == 1
    finally:
        slow.kill()


def test_a_password_is_asked_for_and_a_wrong_one_named_at_once(own: ServerProcess) -> None:
    """The answer will not change: nothing is tried again."""
    connect(own.url).config_set("requirepass", "right")
    started = time.monotonic()
    assert "wants a password" in refusal(Queue(connect(own.url)).tick).message
    wrong = Queue(connect(f"{own.url}&password=wrong"))
    assert "refuses the password" in refusal(wrong.tick).message
    assert time.monotonic() - started < 0.5
    Queue(connect(f"{own.url}&password=right")).tick()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (redis.ConnectionError("max number of clients reached"), "takes no more connections"),
        (redis.exceptions.MasterDownError("Link with MASTER is down"), "lost its primary"),
        (redis.TimeoutError("Timeout reading from socket"), "does not answer: Timeout"),
        (redis.ResponseError("EXECABORT as never before"), "refused: EXECABORT as never before"),
    ],
)
def test_what_a_test_cannot_provoke_is_named_too(error: redis.RedisError, said: str) -> None:
    explained = connection.explain(error)
    assert type(explained) is Unavailable
    assert said in explained.message
