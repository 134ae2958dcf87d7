"""Failures of queues in Ruby, Go, Elixir and JavaScript; the names say whose and which issue."""

import threading

import pytest
from queue_bench import MS, Bench

from farm.errors import LeaseLost, NotFound, Unavailable
from farm.job import TaskState, job_id
from farm.queue import Queue


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


def test_bullmq_648_a_caller_waiting_on_a_server_that_becomes_a_replica_is_woken(
    bench: Bench, queue: Queue
) -> None:
    """A failover ended the blocking call with an unexpected error, and the worker's loop
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


def test_river_1302_a_rescue_does_not_overwrite_what_was_completed_meanwhile(
    bench: Bench, queue: Queue
) -> None:
    """Looking for silent sessions and taking their leases back is one transition."""
    job = bench.submit(1)
    session = bench.session()
    [lease] = bench.lease(session)
    bench.advance(31)
    assert bench.complete(session, lease) == "committed", "late, but it had not been taken back"
    queue.tick()
    status = queue.status(job, "ann")
    assert (status.tasks.done, status.tasks.waiting, status.tasks.queued) == (1, 0, 0)


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
    worker went on, which was not told."""
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


def test_an_unknown_id_is_not_found(queue: Queue) -> None:
    with pytest.raises(NotFound):
        queue.close(job_id(), 1)
