"""What gets lost or stuck on the way to the server, and what the server itself refuses."""

import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from fault_proxy import FaultProxy
from queue_bench import CHECKPOINT, MS, Bench, moved_clock

from farm.errors import FarmError, QueueFull, Unavailable
from farm.job import JobState, TaskState
from farm.local.valkey import ServerProcess
from farm.queue import JobHeader, Opened, Queue, connect, connection
from farm.queue.scripts import read_scripts
from farm.scheduler.scheduler import Scheduler


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


def everything(client: "redis.Redis") -> dict[str, Any]:
    """All that the server holds, but for when somebody was last seen."""
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
        if key.endswith(":sessions"):
            held[key] = [session for session, _ in held[key]]
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
        lambda heard, s: heard == Opened(s.header.job, True),
    ),
    "open": (
        lambda q, s: q.open(s.header),
        lambda heard, s: heard == Opened(s.header.job, True),
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
    "beat": (
        lambda q, s: q.beat(s.session, 7, {s.leases[0].key: (2, 1)}, {"beat": 1}, MS),
        lambda heard, s: heard == ({lease.key for lease in s.leases}, set(), None),
    ),
    "end_crash": (lambda q, s: q.end(s.session, "crash"), lambda heard, s: heard == 0),
    "end_drain": (lambda q, s: q.end(s.session, "drain"), lambda heard, s: heard == 0),
    "command": (lambda q, s: q.command(s.session, "drain"), lambda heard, s: heard is True),
    "cancel": (lambda q, s: q.cancel(s.job, "ann"), lambda heard, s: heard is JobState.CANCELLED),
    "pause": (lambda q, s: q.pause(s.job, "ann"), lambda heard, s: heard is None),
    "resume": (lambda q, s: q.resume(s.paused, "bob"), lambda heard, s: heard is None),
    "retry": (lambda q, s: q.retry(s.ended, "ann"), lambda heard, s: heard == 1),
    "spoil": (lambda q, s: q.spoil(s.ended, "ann", s.finished[0], 1), lambda heard, s: heard == 0),
    "weigh": (lambda q, s: q.weigh("ann", 2.5), lambda heard, s: heard is None),
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


def test_a_request_that_broke_off_is_sent_again(
    bench: Bench, far: Queue, proxy: FaultProxy
) -> None:
    """The server saw the beginning of a command and did nothing."""
    for bytes_sent in (0, 1, 40, 400):
        proxy.cut(to_server=bytes_sent)
        job = far.submit(bench.header(), bench.tasks(20)).job
        assert bench.queue.status(job, "ann").tasks.total == 20
    assert proxy.cuts == 4


def test_a_reply_that_broke_off_in_the_middle_is_asked_for_again(
    bench: Bench, far: Queue, proxy: FaultProxy
) -> None:
    bench.submit(32)
    session = bench.session()
    proxy.cut(to_client=700)
    leases = far.lease(session, None, 1000, MS, 32)
    assert proxy.cuts == 1
    assert sorted(leases) == sorted(bench.queue.held(session))
    assert len(leases) == 32


def test_a_grant_whose_delivery_was_lost_is_still_held(
    bench: Bench, far: Queue, proxy: FaultProxy
) -> None:
    bench.submit(1)
    session = bench.session()
    leases = bench.lease(session)
    proxy.cut(to_client=0)
    assert far.inbox(session, 0.1) == [], "what was popped went down with the connection"
    assert far.held(session) == leases


def test_a_whole_job_comes_through_a_line_that_loses_every_other_reply(
    bench: Bench, far: Queue, proxy: FaultProxy
) -> None:
    stopped = threading.Event()
    generator = random.Random(1)

    def spoil() -> None:
        armed = 0
        while not stopped.wait(generator.random() * 0.01):
            if proxy.cuts == armed:
                armed += 1
                proxy.cut(to_client=generator.choice((0, 0, 1, 50, 300, 600)))

    spoiler = threading.Thread(target=spoil)
    spoiler.start()
    try:
        headers = [bench.header(tenant) for tenant in ("ann", "bob", "eve")]
        for header in headers:
            assert until_heard(lambda: far.submit(header, bench.tasks(3))).job == header.job  # noqa: B023
        session = bench.session()
        while any(state(bench, header) is not JobState.DONE for header in headers):
            until_heard(lambda: far.lease(session, None, 1000, MS, 4))
            for lease in until_heard(lambda: far.held(session)):
                receipt = bench.receipt(lease)
                outcome = until_heard(lambda: far.complete(session, lease, receipt))  # noqa: B023
                assert outcome.verdict in {"committed", "already"}
    finally:
        stopped.set()
        spoiler.join()
    assert proxy.cuts > 3
    for header in headers:
        status = bench.queue.status(header.job, header.tenant)
        assert (status.tasks.total, status.tasks.done, status.generation) == (3, 3, 0)


def until_heard(call: Callable[[], Any]) -> Any:
    """As the farm's loops do."""
    while True:
        try:
            return call()
        except Unavailable:
            continue


def state(bench: Bench, header: JobHeader) -> JobState:
    return bench.queue.status(header.job, header.tenant).state


def seconds_until_unavailable(call: Callable[[], object]) -> float:
    started = time.monotonic()
    with pytest.raises(Unavailable, match="does not answer"):
        call()
    return time.monotonic() - started


def test_a_server_that_falls_silent_is_given_up_in_time_and_found_again(
    bench: Bench, far: Queue, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """redis-py's own retries, one within the other, held a call for four minutes."""
    monkeypatch.setattr(connection, "SOCKET_SECONDS", 0.5)
    monkeypatch.setattr(connection, "PATIENCE_SECONDS", 0.8)
    connected, fresh = (
        Bench(Queue(connect(f"redis://{proxy.address}/0"), scripts=moved_clock(read_scripts())))
        for _ in range(2)
    )
    connected.queue.tick()
    with proxy.failing(proxy.black_hole):
        for mine in (connected, fresh):
            # The patience and one silence, to connect and then to ask.
            assert seconds_until_unavailable(mine.submit) < 2 * (0.8 + 0.5)
    header = bench.header()
    for mine in (connected, fresh):
        assert mine.queue.submit(header, bench.tasks(2)) == Opened(header.job, True)
    assert bench.queue.status(header.job, "ann").tasks.total == 2


def test_a_server_that_is_not_there_is_given_up_in_seconds(far: Queue, proxy: FaultProxy) -> None:
    proxy.drop()
    with proxy.failing(proxy.refuse):
        assert seconds_until_unavailable(far.tick) < 5
        fresh = Queue(connect(f"redis://{proxy.address}/0"))
        assert seconds_until_unavailable(fresh.tick) < 5
    far.tick()


def test_a_short_absence_is_not_noticed(bench: Bench, far: Queue, proxy: FaultProxy) -> None:
    proxy.refuse()
    proxy.drop()
    threading.Timer(0.15, proxy.heal).start()
    assert far.submit(bench.header(), bench.tasks(1)).created


def test_a_slow_line_is_only_slow(bench: Bench, far: Queue, proxy: FaultProxy) -> None:
    proxy.delay(0.02, jitter=0.05)
    job = far.submit(bench.header(), bench.tasks(3)).job
    proxy.throttle(50_000)
    session = bench.session()
    assert len(far.lease(session, None, 1000, MS, 3)) == 3
    assert far.status(job, "ann").tasks.leased == 3


def test_pauses_between_retries_are_spread_over_their_whole_length(far: Queue) -> None:
    """Full jitter: clients that lost one server do not come back to it at the same moments."""
    backoff = far.client.get_retry()._backoff
    for failures, longest in ((1, 0.1), (3, 0.4), (6, 1.0)):
        pauses = [backoff.compute(failures) for _ in range(300)]
        assert min(pauses) < 0.1 * longest
        assert 0.9 * longest < max(pauses) <= longest


@pytest.fixture
def own(folder: Path) -> Iterator[ServerProcess]:
    """A server that a test may do anything to."""
    server = ServerProcess(folder / f"own-{random.randrange(10**6)}")
    with server.serving():
        yield server
    shutil.rmtree(server.data)


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


def test_the_scheduler_goes_on_when_a_killed_server_is_back(own: ServerProcess) -> None:
    """Without a restart of the scheduler; how soon is printed, and aimed at two seconds."""
    bench = Bench(Queue(connect(own.url)))
    scheduler = Scheduler(Queue(connect(own.url)), lease_ms=10_000)
    stopped = threading.Event()
    thread = threading.Thread(target=scheduler.run, args=(stopped,))
    thread.start()
    waits = []
    try:
        for away in (0.2, 3.0):
            session = bench.session()
            bench.queue.beat(session, 100, {}, {}, 60_000)
            job = bench.submit(1)
            assert bench.queue.inbox(session, 2), "it works"
            own.kill()
            time.sleep(away)
            own.start()
            own.ready()
            back = time.monotonic()
            job = bench.submit(1)
            while not any(lease.job == job for lease in bench.queue.held(session)):
                assert time.monotonic() - back < 30
                time.sleep(0.01)
            waits.append(time.monotonic() - back)
            bench.queue.end(session, "drain")
            bench.queue.cancel(job, "ann")
    finally:
        stopped.set()
        thread.join()
    print("seconds from the server's return to the first lease:", *(f"{at:.2f}" for at in waits))
    assert bench.queue.fsck(repair=False) == []


def test_the_scheduler_goes_on_whatever_the_line_does(
    bench: Bench, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SOCKET_SECONDS", 0.5)
    monkeypatch.setattr(connection, "PATIENCE_SECONDS", 0.5)
    far = Queue(connect(f"redis://{proxy.address}/0"), scripts=moved_clock(read_scripts()))
    stopped = threading.Event()
    thread = threading.Thread(target=Scheduler(far, lease_ms=60_000).run, args=(stopped,))
    thread.start()
    generator = random.Random(5)
    session = bench.session()
    try:
        for turn in range(60):
            bench.queue.beat(session, 1000, {}, {}, 600_000)
            bench.submit(1)
            match turn % 6:
                case 0 | 3:
                    proxy.cut(to_client=generator.randrange(400))
                case 1 | 4:
                    proxy.cut(to_server=generator.randrange(400))
                case 2:
                    proxy.drop()
                case 5:
                    with proxy.failing(generator.choice((proxy.refuse, proxy.black_hole))):
                        proxy.drop()
                        time.sleep(0.1)
            time.sleep(0.02)
        proxy.heal()
        healed = time.monotonic()
        while len(bench.queue.held(session)) < 60:
            bench.queue.beat(session, 1000, {}, {}, 600_000)
            assert thread.is_alive()
            assert time.monotonic() - healed < 30
            time.sleep(0.05)
    finally:
        stopped.set()
        thread.join()
    assert proxy.cuts > 3


def test_a_process_accepts_nothing_from_a_server_with_other_data(folder: Path) -> None:
    """The address is taken over by an empty server; the first one's data come back in the end."""
    data, aside = folder / "identity", folder / "identity-aside"
    server = ServerProcess(data)
    server.start()
    server.ready()
    bench, other = Bench(Queue(connect(server.url))), Bench(Queue(connect(server.url)))
    first = bench.submit(1)
    assert other.queue.status(first, "ann").tasks.total == 1
    server.stop()
    with ServerProcess(data).serving():  # its data are there: nothing is amiss
        bench.submit(1)
    data.rename(aside)
    with ServerProcess(data).serving() as empty:
        for act in (lambda: bench.submit(1), other.session, bench.queue.tick, other.queue.sessions):
            with pytest.raises(Unavailable, match="not the one it was") as caught:
                act()
            assert "--rebuild" in str(caught.value.hint)
        assert Bench(Queue(connect(empty.url))).queue.jobs("ann") == []
    shutil.rmtree(data)
    aside.rename(data)
    with ServerProcess(data).serving():
        bench.submit(1)
        assert len(other.queue.jobs("ann")) == 3
