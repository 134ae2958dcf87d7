"""Failures of other Python queues, each tried on this one; the names say whose and which issue."""

import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from queue_bench import MS, Bench

from farm.errors import LeaseLost, NotFound
from farm.job import JobState
from farm.local.valkey import ServerProcess
from farm.queue import Queue, connect


def test_celery_1628_a_job_is_not_acknowledged_by_its_workers_death(
    bench: Bench, queue: Queue
) -> None:
    job = bench.submit(1)
    killed = bench.session()
    bench.lease(killed)
    queue.end(killed, "crash")
    status = queue.status(job, "ann")
    assert (status.tasks.done, status.tasks.waiting, status.state) == (0, 1, JobState.RUNNING)
    bench.advance(61)
    queue.tick()
    assert len(bench.lease(bench.session())) == 1


def test_celery_2599_what_a_worker_has_fetched_and_not_begun_for_hours_runs_once(
    bench: Bench, queue: Queue
) -> None:
    """What lay with a worker for longer than a fixed time was given to the others too, again and
    again, although that worker lived."""
    job = bench.submit(3)
    holder, others = bench.session(), [bench.session() for _ in range(3)]
    leases = bench.lease(holder)
    for _ in range(80):
        bench.advance(550)
        for session in (holder, *others):
            queue.heartbeat(session, 10, {}, {}, 600_000)
        queue.tick()
        assert [bench.lease(other) for other in others] == [[], [], []]
    assert queue.inbox(holder, 0.1) == leases, "twelve hours later"
    assert [bench.complete(holder, lease) for lease in leases] == ["committed"] * 3
    assert queue.status(job, "ann").tasks.done == 3


def test_celery_8030_a_worker_goes_on_consuming_after_redis_came_back(
    bench: Bench, queue: Queue, server: ServerProcess
) -> None:
    session = bench.session()
    assert queue.inbox(session, 0.05) == []
    for kind in ("normal", "pubsub"):
        queue.client.client_kill_filter(_type=kind, skipme=False)
    bench.submit(1)
    connect(server.url).client_kill_filter(_type="normal", skipme=True)
    assert len(bench.lease(session)) == 1
    assert len(queue.inbox(session, 1)) == 1


def test_dramatiq_692_a_long_task_that_renders_nothing_for_long_is_not_queued_again(
    bench: Bench, queue: Queue
) -> None:
    """Life is shown by the session, not by the task's progress."""
    job = bench.submit(1)
    session = bench.session()
    [lease] = bench.lease(session)
    for _ in range(100):
        bench.advance(25)
        queue.tick()
        assert queue.heartbeat(session, 0, {lease.key: (0, 0)}, {}, MS).held == {lease.key}
    assert bench.complete(session, lease) == "committed"
    assert queue.status(job, "ann").tasks.done == 1


def test_dramatiq_527_what_waits_to_be_tried_again_survives_a_lost_connection(
    bench: Bench, queue: Queue
) -> None:
    bench.submit(1)
    session = bench.session()
    [lease] = bench.lease(session)
    queue.fail(session, lease, "infra", "store is away")
    queue.client.client_kill_filter(_type="normal", skipme=False)
    bench.advance(10)
    queue.tick()
    assert len(bench.lease(bench.session())) == 1


@pytest.mark.parametrize("issue", ["rq_2289", "rq_2424"])
def test_rq_a_job_that_succeeded_is_not_found_abandoned_later(
    issue: str, bench: Bench, queue: Queue
) -> None:
    """The registry of started jobs kept the finished ones, and its cleaning failed them."""
    job = bench.submit(1)
    session = bench.session()
    [lease] = bench.lease(session)
    bench.complete(session, lease)
    [final] = queue.held(session)
    bench.complete(session, final)
    if issue == "rq_2424":
        queue.end(session, "crash")
    bench.advance(3600)
    queue.tick()
    status = queue.status(job, "ann")
    assert (status.state, status.tasks.failed) == (JobState.DONE, 0)


def test_taskiq_redis_123_two_workers_cannot_claim_one_task(
    bench: Bench, queue: Queue, server: ServerProcess
) -> None:
    bench.submit(200, pictures=1)
    got: list[str] = []

    def work() -> None:
        mine = Bench(Queue(connect(server.url)))
        session = mine.session()
        while leases := mine.lease(session, limit=3):
            got.extend(lease.key for lease in leases)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(got) == 200
    assert max(Counter(got).values()) == 1


def test_taskiq_redis_130_what_a_dead_worker_had_fetched_is_delivered_again(
    bench: Bench, queue: Queue
) -> None:
    bench.submit(2)
    dead = bench.session()
    bench.lease(dead)
    assert len(queue.inbox(dead, 0.1)) == 2, "delivered, and never acknowledged"
    bench.advance(31)
    queue.tick()
    bench.advance(61)
    queue.tick()
    assert len(bench.lease(bench.session())) == 2


_KEEPS_TIME = """
import sys
sys.path.append(sys.argv[2])
from queue_bench import moved_clock
from farm.queue import Queue, connect
from farm.queue.scripts import read_scripts
queue = Queue(connect(sys.argv[1]), scripts=moved_clock(read_scripts()))
while True:
    queue.tick()
    print("ticked", flush=True)
"""


def test_taskiq_redis_131_a_death_while_reclaiming_does_not_stop_the_others(
    bench: Bench, queue: Queue, server: ServerProcess
) -> None:
    """A lock that never expires was left behind, and nothing was reclaimed after that."""
    bench.submit(1)
    for attempt in range(1, 4):
        [lease] = bench.lease(bench.session())
        assert lease.attempt == attempt
        keeper = subprocess.Popen(
            [sys.executable, "-c", _KEEPS_TIME, server.url, str(Path(__file__).parent)],
            stdout=subprocess.PIPE,
        )
        assert keeper.stdout is not None
        keeper.stdout.readline()
        bench.advance(31)
        keeper.kill()  # in the middle of its work
        keeper.wait()
        keeper.stdout.close()
        queue.tick()
        bench.advance(61)
        queue.tick()
    assert len(bench.lease(bench.session())) == 1


def test_arq_402_a_lost_task_waits_for_its_own_lease_not_for_the_longest_task(
    bench: Bench, queue: Queue
) -> None:
    """It came back after the longest time limit of all the jobs that its worker knew."""
    bench.submit(1, cost=10**9)
    bench.submit(1, cost=1)
    dead = bench.session()
    assert len(bench.lease(dead)) == 2
    bench.advance(31)
    queue.tick()
    bench.advance(2.1)
    queue.tick()
    assert sorted(lease.attempt for lease in bench.lease(bench.session())) == [2, 2]


def test_arq_343_what_a_crashed_worker_had_starts_again_within_the_lease(
    bench: Bench, queue: Queue
) -> None:
    """It took hours: a key with the job's own time limit had to run out."""
    bench.submit(1)
    crashed = bench.session()
    bench.lease(crashed)
    restarted = bench.session()
    queue.end(crashed, "crash")
    bench.advance(2.1)
    queue.tick()
    assert len(bench.lease(restarted)) == 1


def test_arq_407_the_time_to_notice_a_death_does_not_grow_with_the_task(
    bench: Bench, queue: Queue
) -> None:
    job = bench.submit(1, cost=10**9)
    session = bench.session()
    [lease] = bench.lease(session)
    for _ in range(200):
        bench.advance(25)
        queue.heartbeat(session, 0, {lease.key: (1, 0)}, {}, MS)
        queue.tick()
    assert queue.status(job, "ann").tasks.leased == 1
    bench.advance(31)
    queue.tick()
    assert queue.status(job, "ann").tasks.leased == 0


def test_arq_485_cancelling_an_unknown_job_does_not_cancel_one_that_comes_later(
    bench: Bench, queue: Queue
) -> None:
    header = bench.header()
    with pytest.raises(NotFound):
        queue.cancel(header.job, "ann")
    queue.submit(header, bench.tasks(1))
    assert queue.status(header.job, "ann").state is JobState.QUEUED
    assert len(bench.lease(bench.session())) == 1


def test_saq_56_cancelling_a_queued_job_takes_as_long_however_many_there_are(
    bench: Bench, queue: Queue
) -> None:
    """The queue was searched from one end to the other for each job: 30 a second of 500,000."""

    def microseconds(jobs: list[str]) -> float:
        """Of the server, for the fastest; the others met whatever else the machine does."""
        taken = []
        for job in jobs:
            queue.client.config_resetstat()
            assert queue.cancel(job, "ann") is JobState.CANCELLED
            taken.append(queue.client.info("commandstats")["cmdstat_evalsha"]["usec_per_call"])
        return min(taken)

    few = microseconds([bench.submit(1) for _ in range(40)][::2])
    many = microseconds([bench.submit(1) for _ in range(3000)][::100])
    assert many < 5 * few
    large = [bench.submit(200) for _ in range(10)]
    assert microseconds(large) < 20 * few, "nor does the size of the job matter"
    assert queue.status(large[0], "ann").tasks.cancelled == 200


def test_saq_124_a_queued_job_is_not_swept_for_an_active_one(bench: Bench, queue: Queue) -> None:
    job = bench.submit(1)
    session = bench.session()
    [lease] = bench.lease(session)
    queue.fail(session, lease, "release", "")
    bench.advance(3600)
    queue.tick()
    assert queue.status(job, "ann").tasks.queued == 1
    assert bench.lease(bench.session())[0].attempt == 2


def test_saq_277_a_task_is_not_swept_between_its_grant_and_its_start(
    bench: Bench, queue: Queue
) -> None:
    """For an instant it was in the list of active jobs and still said to be queued."""
    job = bench.submit(1)
    session = bench.session()
    [lease] = bench.lease(session)
    bench.advance(0.2)
    queue.tick()
    assert queue.inbox(session, 0.1) == [lease], "granted, and only now fetched"
    bench.advance(0.2)
    queue.tick()
    assert queue.status(job, "ann").tasks.leased == 1
    assert bench.complete(session, lease) == "committed"


def test_saq_126_a_task_that_was_swept_does_not_go_on_to_count_twice(
    bench: Bench, queue: Queue
) -> None:
    """It was marked as aborted for want of heartbeats, and ran to its end beside the next one."""
    job = bench.submit(1)
    silent = bench.session()
    [old] = bench.lease(silent)
    bench.advance(31)
    queue.tick()
    bench.advance(61)
    queue.tick()
    successor = bench.session()
    [new] = bench.lease(successor)
    with pytest.raises(LeaseLost, match="ended"):
        queue.heartbeat(silent, 0, {old.key: (3, 0)}, {}, MS)
    assert bench.complete(successor, new) == "committed"
    outcome = queue.complete(silent, old, bench.receipt(old, failed=4))
    assert outcome == ("already", bench.receipt(new))
    status = queue.status(job, "ann")
    assert (status.tasks.done, status.images.done, status.images.failed) == (1, 4, 0)
    assert [finished.receipt for finished in queue.finished(job)] == [bench.receipt(new)]


def test_saq_127_a_killed_process_leaves_no_job_active_for_ever(bench: Bench, queue: Queue) -> None:
    job = bench.submit(3)
    killed = bench.session()
    bench.lease(killed, limit=2)
    bench.advance(31)
    queue.tick()
    with pytest.raises(LeaseLost):
        queue.heartbeat(killed, 1, {}, {}, MS)
    status = queue.status(job, "ann")
    assert (status.tasks.leased, status.tasks.waiting) == (0, 2)
