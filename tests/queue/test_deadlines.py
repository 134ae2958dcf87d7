"""What a job's deadline ends and what it leaves alone."""

from datetime import UTC, datetime, timedelta

from queue_bench import Bench

from farm.job import JobState, TaskState
from farm.queue import Queue


def test_a_deadline_never_lets_work_start_late(bench: Bench, queue: Queue) -> None:
    deadline = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
    job = bench.submit(3, deadline=deadline)
    session = bench.session()
    [lease] = bench.lease(session, limit=1)
    queue.heartbeat(session, 0, {}, {}, 10**6)
    bench.advance(61)
    assert bench.lease(session) == []
    status = queue.status(job, "ann")
    assert (status.tasks.expired, status.tasks.leased, status.images.failed) == (2, 1, 8)
    assert status.images.expired == 8
    assert queue.totals(job) == status.images
    assert bench.complete(session, lease) == "committed", "what had started goes on"
    [final] = queue.held(session)
    bench.complete(session, final)
    assert queue.status(job, "ann").state is JobState.FAILED


def test_what_fails_after_the_deadline_is_not_tried_again(bench: Bench, queue: Queue) -> None:
    deadline = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
    job = bench.submit(1, deadline=deadline)
    session = bench.session()
    [lease] = bench.lease(session)
    queue.heartbeat(session, 0, {}, {}, 10**6)
    bench.advance(61)
    queue.tick()
    assert queue.fail(session, lease, "infra", "store is away") is TaskState.EXPIRED
    assert queue.status(job, "ann").tasks.expired == 1
    assert queue.totals(job).expired == 4


def test_what_waits_at_its_deadline_expires(bench: Bench, queue: Queue) -> None:
    deadline = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
    job = bench.submit(1, deadline=deadline)
    session = bench.session()
    [lease] = bench.lease(session)
    queue.fail(session, lease, "infra", "store is away")
    bench.advance(61)
    queue.tick()
    bench.advance(61)
    queue.tick()
    status = queue.status(job, "ann")
    assert (status.tasks.expired, status.tasks.queued, status.images.failed) == (1, 0, 4)
