"""Data of a newer farm are refused, those of an older one are read."""

import pytest
from queue_bench import Bench, moved_clock

from farm.errors import Unavailable
from farm.local.valkey import ServerProcess
from farm.queue import Queue, connect
from farm.queue.constants import SCHEMA
from farm.queue.scripts import read_scripts

KEY = "{farm}:server"


def test_every_call_refuses_what_a_newer_farm_has_written(bench: Bench, queue: Queue) -> None:
    """Also through a connection that was there before the newer farm came."""
    job = bench.submit(1)
    session = bench.session()
    queue.client.hset(KEY, "schema", SCHEMA + 1)
    for call in (
        lambda: bench.submit(1),
        lambda: queue.status(job, "ann"),
        lambda: bench.lease(session),
        queue.tick,
    ):
        with pytest.raises(Unavailable, match="newer version") as caught:
            call()
        assert not caught.value.retryable
        assert "FARM_NAME" in str(caught.value.hint)
    queue.client.hset(KEY, "schema", SCHEMA)
    assert len(bench.lease(session)) == 1, "nothing was done with it"


def test_a_newer_number_is_not_lowered(own: ServerProcess) -> None:
    client = connect(own.url)
    client.hset(KEY, "schema", SCHEMA + 1)
    late = connect(own.url)
    with pytest.raises(Unavailable, match="newer version"):
        Queue(late).jobs("ann")
    assert client.hget(KEY, "schema") == str(SCHEMA + 1)


def test_data_without_a_number_are_read_and_get_one(own: ServerProcess) -> None:
    first = Bench(Queue(connect(own.url), scripts=moved_clock(read_scripts())))
    job = first.submit(1)
    client = first.queue.client
    client.hdel(KEY, "schema")
    client.hdel(f"{{farm}}:job:{job}", "k")  # as before row-steps were counted
    status = Queue(connect(own.url)).status(job, "ann")
    assert (status.tasks.total, status.row_steps) == (1, 0)
    assert client.hget(KEY, "schema") == str(SCHEMA)
