"""Failures that other queues had, each tried on this one; the names say whose and which issue."""

import subprocess
import sys
import threading
from collections import Counter

import pytest
from queue_bench import MS, Bench

from farm.errors import LeaseLost, NotFound, Unavailable
from farm.job import JobState, TaskState, job_id
from farm.local.valkey import ServerProcess
from farm.queue import Queue, connect


def test_sidekiq_4611_a_job_that_just_started_is_not_recovered_from_a_living_worker(
    bench: Bench, queue: Queue
) -> None:
    """Another process that starts up looked for orphans and took what had begun seconds before."""
    bench.submit(1)
    first = bench.session()
    [lease] = bench.lease(first)
    bench.advance(3)
    second = bench.session()
    queue.tick()
    assert bench.lease(second) == []
    assert bench.complete(first, lease) == "committed"


def test_sidekiq_4633_a_poison_task_does_not_kill_worker_after_worker(
    bench: Bench, queue: Queue
) -> None:
    job = bench.submit(1)
    killed = 0
    for _ in range(10):
        session = bench.session()
        if not [lease for lease in bench.lease(session) if not lease.finalise]:
            break
        queue.end(session, "crash")
        killed += 1
        bench.advance(61)
        queue.tick()
    assert killed == 3
    assert queue.status(job, "ann").tasks.failed == 1


def test_sidekiq_4495_a_completion_that_met_a_failing_server_needs_no_restart_to_be_heard(
    bench: Bench, queue: Queue
) -> None:
    """The acknowledgement was lost in a failover, and with it the job: it was neither done nor run
    again until its worker was restarted, days later."""
    job = bench.submit(2)
    session = bench.session()
    first, second = bench.lease(session)
    queue.client.replicaof("127.0.0.1", 1)
    try:
        for lease in (first, second):
            with pytest.raises(Unavailable, match="read-only"):
                bench.complete(session, lease)
    finally:
        queue.client.replicaof("NO", "ONE")
    for _ in range(20):
        bench.advance(25)
        queue.heartbeat(session, 0, {}, {}, MS)
        queue.tick()
    assert queue.held(session) == [first, second], "neither lost nor given away"
    assert bench.complete(session, first) == "committed", "the worker says it again"
    queue.end(session, "lost")  # or it never does
    bench.advance(61)
    queue.tick()
    other = bench.session()
    [again] = bench.lease(other)
    assert (again.key, again.attempt) == (second.key, 2)
    assert bench.complete(other, again) == "committed"
    assert queue.status(job, "ann").tasks.done == 2


def test_bullmq_2466_what_is_due_runs_although_nothing_else_is_added(
    bench: Bench, queue: Queue
) -> None:
    """Delayed jobs slept until the next new one woke the worker."""
    bench.submit(1)
    idle = bench.session()
    [lease] = bench.lease(idle)
    queue.fail(idle, lease, "infra", "store is away")
    assert bench.lease(idle) == []
    bench.advance(24 * 3600)
    queue.heartbeat(idle, 1, {}, {}, MS)
    queue.tick()
    assert len(bench.lease(idle)) == 1


def test_bullmq_648_who_waits_on_a_server_that_becomes_a_replica_is_woken_and_may_wait_again(
    bench: Bench, queue: Queue
) -> None:
    """A failover ended the blocking call with an error that nobody expected, and the worker's loop
    with it."""
    session = bench.session()
    events = queue.last_event()
    waits = (lambda: queue.inbox(session, 2), lambda: queue.events(events, 2000))
    for wait in waits:
        demoting = threading.Timer(0.2, lambda: queue.client.replicaof("127.0.0.1", 1))
        demoting.start()
        try:
            with pytest.raises(Unavailable, match="replica") as caught:
                wait()
            assert "primary" in str(caught.value.hint)
        finally:
            demoting.join()
            queue.client.replicaof("NO", "ONE")
    bench.submit(1)
    leases = bench.lease(session)
    assert queue.inbox(session, 1) == leases
    assert [event.kind for event in queue.events(events, 1)] == ["queued", "running"]


def test_bullmq_652_a_job_whose_worker_is_gone_does_not_stay_active_nor_hold_up_the_rest(
    bench: Bench, queue: Queue
) -> None:
    job = bench.submit(2)
    gone = bench.session()
    bench.lease(gone, limit=1)
    other = bench.session()
    assert len(bench.lease(other)) == 1, "the rest goes on"
    bench.advance(31)
    queue.tick()
    assert queue.status(job, "ann").tasks.leased == 0


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


def test_river_1302_a_rescue_does_not_overwrite_what_was_completed_meanwhile(
    bench: Bench, queue: Queue
) -> None:
    """Looking for silent sessions and taking their leases back is one transition."""
    job = bench.submit(1)
    session = bench.session()
    [lease] = bench.lease(session)
    bench.advance(31)
    assert bench.complete(session, lease) == "committed", "late, but nobody had taken it back"
    queue.tick()
    status = queue.status(job, "ann")
    assert (status.tasks.done, status.tasks.waiting, status.tasks.queued) == (1, 0, 0)


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


def test_oban_1141_a_running_job_is_not_started_a_second_time(bench: Bench, queue: Queue) -> None:
    bench.submit(1)
    session, others = bench.session(), [bench.session() for _ in range(3)]
    [lease] = bench.lease(session)
    for minute in range(30):
        bench.advance(20)
        queue.heartbeat(session, 0, {}, {}, MS)
        queue.tick()
        for at, other in enumerate(others):
            queue.heartbeat(other, 10, {}, {}, MS)
            assert bench.lease(other) == [], f"worker {at} after {minute} turns"
    assert lease.attempt == 1
    assert queue.held(session) == [lease]


def test_faktory_179_a_worker_without_heartbeats_does_not_multiply_its_jobs(
    bench: Bench, queue: Queue
) -> None:
    """Jobs that take longer than their reservation ran again and again, each run adding more."""
    job = bench.submit(1, max_failed=100)
    runs = 0
    for _ in range(60):
        session = bench.session()
        if not [lease for lease in bench.lease(session) if not lease.finalise]:
            break
        runs += 1
        bench.advance(100)
        queue.tick()
        bench.advance(61)
        queue.tick()
    assert runs == 20
    assert queue.status(job, "ann").tasks.failed == 1


def test_faktory_worker_node_163_a_late_worker_is_told_before_its_task_starts_elsewhere(
    bench: Bench, queue: Queue
) -> None:
    """A job on a loaded machine outlasted its reservation; it was started again while its first
    worker went on, which nobody told."""
    bench.submit(2)
    loaded = bench.session()
    held = bench.lease(loaded)
    for _ in range(4):
        bench.advance(29)  # as late as can be
        queue.tick()
        assert queue.heartbeat(loaded, 0, {}, {}, MS).held == {lease.key for lease in held}
    bench.advance(31)
    queue.tick()
    with pytest.raises(LeaseLost, match="register again and drop everything"):
        queue.heartbeat(loaded, 0, {}, {}, MS)
    assert queue.held(loaded) == []
    bench.advance(61)
    queue.tick()
    assert len(bench.lease(bench.session())) == 2


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
from farm.queue import Queue, connect
queue = Queue(connect(sys.argv[1]))
while True:
    queue.tick()
    print("ticked", flush=True)
"""


def test_taskiq_redis_131_whoever_is_killed_while_reclaiming_does_not_stop_the_others(
    bench: Bench, queue: Queue, server: ServerProcess
) -> None:
    """A lock without an end was left behind, and nobody reclaimed anything ever after."""
    bench.submit(1)
    for attempt in range(1, 4):
        [lease] = bench.lease(bench.session())
        assert lease.attempt == attempt
        keeper = subprocess.Popen(
            [sys.executable, "-c", _KEEPS_TIME, server.url], stdout=subprocess.PIPE
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
    large = bench.header()
    queue.open(large)
    for piece in range(10):
        tasks = bench.tasks(200, first=200 * piece)
        queue.append(large.job, piece, f"{piece:064x}", tasks)
    assert microseconds([large.job]) < 20 * few, "nor does the size of the job matter"
    assert queue.status(large.job, "ann").tasks.cancelled == 2000


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


def test_bull_308_a_worker_that_lost_its_lock_cannot_end_the_job_of_its_successor(
    bench: Bench, queue: Queue
) -> None:
    bench.submit(1)
    slow = bench.session()
    [old] = bench.lease(slow)
    bench.advance(31)
    queue.tick()
    bench.advance(5)
    queue.tick()
    successor = bench.session()
    [new] = bench.lease(successor)
    assert bench.complete(slow, old) == "stale"
    assert queue.fail(slow, old, "row", "mine") is TaskState.LEASED
    assert queue.held(successor) == [new]
    assert bench.complete(successor, new) == "committed"


def test_an_id_that_nobody_made_is_not_found(queue: Queue) -> None:
    with pytest.raises(NotFound):
        queue.close(job_id(), 1)
