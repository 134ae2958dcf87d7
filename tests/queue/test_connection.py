"""What is lost or stuck on the way to the server."""

import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_proxy import FaultProxy
from queue_bench import MS, Bench, moved_clock, until_heard

from farm.errors import Unavailable
from farm.job import JobState
from farm.local.valkey import ServerProcess
from farm.queue import JobHeader, Queue, Submitted, connect, connection
from farm.queue.scripts import read_scripts
from farm.scheduler.scheduler import Scheduler


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


@pytest.mark.slow
def test_a_whole_job_comes_through_a_line_that_loses_every_other_reply(
    bench: Bench, far: Queue, proxy: FaultProxy
) -> None:
    stopped = threading.Event()
    generator = random.Random(1)

    def cut_often() -> None:
        armed = 0
        while not stopped.wait(generator.random() * 0.01):
            if proxy.cuts == armed:
                armed += 1
                proxy.cut(to_client=generator.choice((0, 0, 1, 50, 300, 600)))

    cutter = threading.Thread(target=cut_often)
    cutter.start()
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
        cutter.join()
    assert proxy.cuts > 3
    for header in headers:
        status = bench.queue.status(header.job, header.tenant)
        assert (status.tasks.total, status.tasks.done, status.generation) == (3, 3, 0)


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
        assert mine.queue.submit(header, bench.tasks(2)) == Submitted(header.job, True)
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
            bench.queue.heartbeat(session, 100, {}, {}, 60_000)
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
    assert bench.queue.check(repair=False) == []


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
            bench.queue.heartbeat(session, 1000, {}, {}, 600_000)
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
            bench.queue.heartbeat(session, 1000, {}, {}, 600_000)
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
