"""A job whose rest never comes, and a server's clock that is set back."""

import pytest
from queue_bench import LANE, MS, Bench

from farm.errors import JobCancelled
from farm.job import JobState
from farm.queue import Queue

HOUR = 3600


def test_an_open_job_whose_rest_does_not_come_is_cancelled_and_says_so(
    bench: Bench, queue: Queue
) -> None:
    header = bench.header()
    queue.open(header)
    queue.append(header.job, 0, "a" * 64, bench.tasks(2))
    bench.advance(23 * HOUR)
    queue.append(header.job, 1, "b" * 64, bench.tasks(2, first=2))
    bench.advance(23 * HOUR)
    queue.tick()
    assert queue.status(header.job, "ann").state is JobState.OPEN
    bench.advance(2 * HOUR)
    queue.tick()
    status = queue.status(header.job, "ann")
    assert (status.state, status.tasks.cancelled) == (JobState.CANCELLED, 4)
    assert "left open" in str(status.reason)
    assert "24 hours" in str(status.reason)
    assert queue.backlog() == []
    with pytest.raises(JobCancelled):
        queue.append(header.job, 2, "c" * 64, bench.tasks(1, first=4))


@pytest.mark.parametrize("how", ["open", "append"])
def test_a_client_that_goes_on_with_a_job_has_all_its_time_again(
    how: str, bench: Bench, queue: Queue
) -> None:
    header = bench.header(idempotency_key="mine")
    queue.open(header)
    queue.append(header.job, 0, "a" * 64, bench.tasks(2))
    bench.advance(23 * HOUR)
    if how == "open":
        assert queue.open(bench.header(idempotency_key="mine")).job == header.job
    else:
        assert not queue.append(header.job, 0, "a" * 64, bench.tasks(2))
    bench.advance(2 * HOUR)
    queue.tick()
    assert queue.status(header.job, "ann").state is JobState.OPEN
    queue.close(header.job, 1)
    assert not queue.append(header.job, 0, "a" * 64, bench.tasks(2))
    assert queue.client.exists("{farm}:opened") == 0


def test_an_open_jobs_lanes_are_remembered_for_as_long_as_it_may_be_open(
    bench: Bench, queue: Queue
) -> None:
    for hours in (24, 72):
        queue.keep(retention_days=30, open_hours=hours)
        queue.note_lanes(bench.header().job, {LANE}, 1)
    left = [queue.client.ttl(key) for key in queue.client.scan_iter("{farm}:lanes-of:*")]
    assert [round(seconds / HOUR) for seconds in sorted(left)] == [24, 72]


def test_how_long_a_job_may_be_open_is_a_setting(bench: Bench, queue: Queue) -> None:
    queue.keep(retention_days=30, open_hours=0.5)
    header = bench.header()
    queue.open(header)
    bench.advance(HOUR / 2 + 1)
    queue.tick()
    assert "0.5 hours" in str(queue.status(header.job, "ann").reason)


def test_a_closed_job_may_take_as_long_as_it_takes(bench: Bench, queue: Queue) -> None:
    header, whole = bench.header(), bench.submit(1)
    queue.open(header)
    queue.append(header.job, 0, "a" * 64, bench.tasks(1))
    queue.close(header.job, 1)
    assert queue.client.exists("{farm}:opened") == 0
    bench.advance(25 * HOUR)
    queue.tick()
    for job in (header.job, whole):
        assert queue.status(job, "ann").state is JobState.QUEUED


def test_a_cancelled_job_is_no_longer_open(bench: Bench, queue: Queue) -> None:
    header = bench.header()
    queue.open(header)
    queue.cancel(header.job, "ann")
    assert queue.client.exists("{farm}:opened") == 0


def test_an_open_job_that_nothing_would_end_is_found(bench: Bench, queue: Queue) -> None:
    queue.open(bench.header())
    queue.client.delete("{farm}:opened")
    assert len(queue.check()) == 1
    bench.advance(25 * HOUR)
    queue.tick()
    assert queue.jobs("ann")[0].state is JobState.CANCELLED


def test_a_task_does_not_wait_for_a_clock_that_was_set_back(bench: Bench, queue: Queue) -> None:
    job = bench.submit(1)
    session = bench.session()
    [lease] = bench.lease(session)
    queue.fail(session, lease, "infra", "store is away")
    queue.tick()
    bench.advance(-HOUR)
    queue.tick()
    assert queue.status(job, "ann").tasks.queued == 1


def test_a_dead_workers_tasks_do_not_wait_for_a_clock_that_was_set_back(
    bench: Bench, queue: Queue
) -> None:
    job = bench.submit(1)
    dead, alive = bench.session(), bench.session()
    bench.lease(dead)
    queue.tick()
    bench.advance(-HOUR)
    queue.heartbeat(alive, 1, {}, {}, MS)
    queue.tick()
    assert len(queue.sessions()) == 2, "its lease counts from now"
    bench.advance(20)
    queue.heartbeat(alive, 1, {}, {}, MS)
    bench.advance(15)
    queue.tick()
    assert [one.session for one in queue.sessions()] == [alive]
    assert queue.status(job, "ann").tasks.waiting == 1


def test_a_machine_that_slept_or_a_clock_that_was_set_ahead_ends_no_session(
    bench: Bench, queue: Queue
) -> None:
    job = bench.submit(1)
    dead, alive = bench.session(), bench.session()
    bench.lease(alive)
    queue.tick()
    bench.jump(HOUR)
    queue.tick()
    assert len(queue.sessions()) == 2
    bench.advance(20)
    queue.heartbeat(alive, 1, {}, {}, MS)
    bench.advance(15)
    queue.tick()
    assert [one.session for one in queue.sessions()] == [alive], "each has had one more lease"
    assert dead != alive
    assert queue.status(job, "ann").tasks.leased == 1


def test_a_dead_scheduler_is_followed_also_if_the_clock_was_set_back(
    bench: Bench, queue: Queue
) -> None:
    now = queue.now_ms()
    assert queue.lead("old", now, 15_000)
    bench.advance(-HOUR)
    assert queue.lead("new", now - 1000 * HOUR, 15_000)
    assert not queue.lead("older", now - 2000 * HOUR, 15_000)


def test_a_dead_session_ends_however_seldom_one_looks(bench: Bench, queue: Queue) -> None:
    bench.session()
    queue.tick()
    for left in (1, 1, 0):
        bench.jump(20)
        queue.tick()
        assert len(queue.sessions()) == left


def test_a_heartbeat_since_the_clock_was_set_back_counts_as_it_is(
    bench: Bench, queue: Queue
) -> None:
    session = bench.session()
    queue.tick()
    bench.advance(-HOUR)
    queue.heartbeat(session, 1, {}, {}, MS)
    bench.jump(20)  # without a look
    queue.tick()
    bench.advance(11)
    queue.tick()
    assert queue.sessions() == []


def test_a_wait_that_has_begun_since_is_kept(bench: Bench, queue: Queue) -> None:
    """Only what is due later than any wait can be is due at once."""
    job = bench.submit(1)
    session = bench.session()
    [lease] = bench.lease(session)
    queue.fail(session, lease, "infra", "store is away")
    later = queue.client.time()[0] * 1000 + 50_000
    queue.client.zadd("{farm}:waiting", {lease.key: later})
    queue.tick()
    assert queue.status(job, "ann").tasks.waiting == 1
