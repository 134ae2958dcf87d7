"""Every call may be sent again after its reply was lost: it is done once."""

from collections.abc import Callable
from typing import Any

import pytest
import redis
from fault_proxy import FaultProxy
from queue_bench import CHECKPOINT, MS, Bench

from farm.job import JobState, TaskState
from farm.queue import Queue, Submitted


def everything(client: "redis.Redis") -> dict[str, Any]:
    """Everything that the server holds, except when sessions and open jobs were last heard of."""
    readers: dict[str, Callable[[str], Any]] = {
        "hash": client.hgetall,
        "set": client.smembers,
        "list": lambda key: client.lrange(key, 0, -1),
        "zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        "stream": client.xrange,
        "string": client.get,
    }
    held = {}
    for key in map(str, client.scan_iter(count=1000)):
        held[key] = readers[str(client.type(key))](key)
        if ":session:" in key:
            held[key].pop("seen", None)
        if key.endswith((":sessions", ":opened")):
            held[key] = {name for name, _ in held[key]}
        if key.endswith(":ticked"):
            del held[key]
    return held


class Stage:
    """A farm in the middle of its work."""

    def __init__(self, bench: Bench) -> None:
        queue = bench.queue
        self.bench = bench
        self.session = bench.session()
        self.header = bench.header()
        self.open = queue.open(bench.header()).job
        self.ended = bench.submit(2, max_failed=100)
        for lease in bench.lease(self.session):
            bench.complete(self.session, lease, failed=1)
        [final] = queue.held(self.session)
        bench.complete(self.session, final)
        self.finished = queue.finished(self.ended)
        self.delayed = bench.submit(1)
        [lease] = bench.lease(self.session)
        queue.fail(self.session, lease, "infra", "the store is away")
        self.job = bench.submit(4)
        self.leases = bench.lease(self.session, limit=2)
        self.paused = bench.submit(1, tenant="bob")
        queue.pause(self.paused, "bob")

    def due(self) -> None:
        """What waits to be tried again may start."""
        self.bench.advance(5)


# Operation → what it does, and whether its caller hears what it must although the first reply was
# lost. Where the second call says that all was done before, callers take that as done.
SENT_AGAIN: dict[str, tuple[Callable[[Queue, Stage], Any], Callable[[Any, Stage], bool]]] = {
    "submit": (
        lambda q, s: q.submit(s.header, s.bench.tasks(3)),
        lambda heard, s: heard == Submitted(s.header.job, True),
    ),
    "open": (
        lambda q, s: q.open(s.header),
        lambda heard, s: heard == Submitted(s.header.job, True),
    ),
    "append": (
        lambda q, s: q.append(s.open, 0, "a" * 64, s.bench.tasks(3), rejected=2),
        lambda heard, s: heard is False,
    ),
    "close": (lambda q, s: q.close(s.open, 0), lambda heard, s: heard is None),
    "register": (
        lambda q, s: q.register("b" * 32, "worker-b", (CHECKPOINT,), {}),
        lambda heard, s: heard is None,
    ),
    "lease": (
        lambda q, s: q.lease(s.session, None, 1000, MS, 2),
        lambda heard, s: (
            len({lease.key for lease in heard}) == 2
            and set(s.bench.queue.held(s.session)) == {*heard, *s.leases}
        ),
    ),
    "complete": (
        lambda q, s: q.complete(s.session, s.leases[0], s.bench.receipt(s.leases[0])),
        lambda heard, s: heard == ("already", s.bench.receipt(s.leases[0])),
    ),
    "complete_all": (
        lambda q, s: q.complete_all(s.session, [(at, s.bench.receipt(at, 1)) for at in s.leases]),
        lambda heard, s: heard == [("already", s.bench.receipt(at, 1)) for at in s.leases],
    ),
    "fail_row": (
        lambda q, s: q.fail(s.session, s.leases[0], "row", "bad"),
        lambda heard, s: heard is TaskState.FAILED,
    ),
    "fail_crash": (
        lambda q, s: q.fail(s.session, s.leases[0], "crash", "died"),
        lambda heard, s: heard is TaskState.WAITING,
    ),
    "fail_infra": (
        lambda q, s: q.fail(s.session, s.leases[0], "infra", "no store"),
        lambda heard, s: heard is TaskState.WAITING,
    ),
    "fail_release": (
        lambda q, s: q.fail(s.session, s.leases[0], "release", ""),
        lambda heard, s: heard is TaskState.QUEUED,
    ),
    "heartbeat": (
        lambda q, s: q.heartbeat(s.session, 7, {s.leases[0].key: (2, 1)}, {"beat": 1}, MS),
        lambda heard, s: heard[:3] == ({lease.key for lease in s.leases}, set(), None),
    ),
    "end_crash": (lambda q, s: q.end(s.session, "crash"), lambda heard, s: heard == 0),
    "end_drain": (lambda q, s: q.end(s.session, "drain"), lambda heard, s: heard == 0),
    "set_command": (lambda q, s: q.set_command(s.session, "drain"), lambda heard, s: heard is True),
    "cancel": (lambda q, s: q.cancel(s.job, "ann"), lambda heard, s: heard is JobState.CANCELLED),
    "pause": (lambda q, s: q.pause(s.job, "ann"), lambda heard, s: heard is None),
    "resume": (lambda q, s: q.resume(s.paused, "bob"), lambda heard, s: heard is None),
    "retry": (lambda q, s: q.retry(s.ended, "ann"), lambda heard, s: heard == 1),
    "invalidate": (
        lambda q, s: q.invalidate(s.ended, "ann", s.finished[0], 1),
        lambda heard, s: heard == 0,
    ),
    "set_weight": (lambda q, s: q.set_weight("ann", 2.5), lambda heard, s: heard is None),
    "tick": (lambda q, s: q.tick(), lambda heard, s: heard is None),
}


@pytest.mark.parametrize("operation", SENT_AGAIN)
def test_what_is_sent_again_because_its_reply_was_lost_is_done_once(
    operation: str, bench: Bench, far: Queue, proxy: FaultProxy
) -> None:
    do, hears = SENT_AGAIN[operation]
    stage = Stage(bench)
    stage.due()
    client = bench.queue.client
    before, calls = everything(client), evaluations(client)
    after_first: list[dict[str, Any]] = []
    proxy.cut(to_client=0, then=lambda: after_first.append(everything(client)))
    heard = do(far, stage)
    assert proxy.cuts == 1
    # A lease that was sent before is answered with keys, and ``held`` tells what they are.
    assert evaluations(client) == calls + (3 if operation == "lease" else 2)
    assert after_first[0] != before, "the first time did it"
    assert everything(client) == after_first[0], "the second time did nothing"
    assert hears(heard, stage), heard


def evaluations(client: "redis.Redis") -> int:
    """Scripts that the server ran."""
    return int(client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])
