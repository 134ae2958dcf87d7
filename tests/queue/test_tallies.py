"""What the queue counts for the farm's metrics."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from queue_bench import MS, OTHER_LANE, Bench

from farm.errors import LeaseLost
from farm.job import Priority
from farm.queue import Queue
from farm.queue.scripts import read_parts
from farm.queue.tallies import WAIT_BUCKETS, Tenant


def test_tenants_are_counted_by_what_was_made_for_them(bench: Bench, queue: Queue) -> None:
    bench.submit(2, tenant="ann", pictures=4, cost=48)
    bench.submit(1, tenant="bob", pictures=10, cost=100)
    session = bench.session()
    for lease in bench.lease(session):
        bench.complete(session, lease, failed=3 if lease.pictures == 10 else 0)
    found = queue.tallies()
    assert found.tenants == {"ann": Tenant(8, 96), "bob": Tenant(7, 70)}
    assert found.failed == {"row": 3}
    assert found.leases == 3
    assert found.leases_lost == 0


def test_a_receipt_that_is_sent_again_is_counted_once(bench: Bench, queue: Queue) -> None:
    bench.submit(1)
    session = bench.session()
    [lease] = bench.lease(session)
    assert [bench.complete(session, lease) for _ in range(3)] == ["committed", "already", "already"]
    assert queue.tallies().tenants == {"ann": Tenant(4, 48)}


def test_of_several_receipts_in_one_call_each_is_counted(bench: Bench, queue: Queue) -> None:
    for pictures in (4, 10):
        bench.submit(1, pictures=pictures, cost=12 * pictures)
    session = bench.session()
    done = [(lease, bench.receipt(lease)) for lease in bench.lease(session)]
    queue.complete_all(session, done)
    assert queue.tallies().tenants == {"ann": Tenant(14, 168)}


def test_a_task_that_finalises_its_job_does_not_count_as_returned(
    bench: Bench, queue: Queue
) -> None:
    bench.submit(1)
    session = bench.session()
    bench.complete(session, bench.lease(session)[0])
    [final] = queue.held(session)
    assert final.finalise
    queue.end(session, "lost")
    found = queue.tallies()
    assert found.returned == {}
    assert found.sessions == {"lost": 1}


def test_how_leases_and_sessions_end_is_counted(bench: Bench, queue: Queue) -> None:
    bench.submit(4)
    crashed, drained, lost, kept = (bench.session() for _ in range(4))
    for session in (crashed, drained, lost, kept):
        bench.lease(session, limit=1)
    queue.end(crashed, "crash")
    queue.end(crashed, "crash")  # it has ended before
    queue.end(drained, "drain")
    queue.end(lost, "lost")
    [lease] = queue.held(kept)
    queue.fail(kept, lease, "row", "it cannot be drawn")
    found = queue.tallies()
    assert found.sessions == {"crash": 1, "drain": 1, "lost": 1}
    assert found.returned == {"crash": 1, "release": 1, "infra": 1, "row": 1}
    assert found.leases_lost == 2
    assert found.failed == {"row": 4}


def test_what_comes_too_late_is_counted_as_expired(bench: Bench, queue: Queue) -> None:
    bench.submit(3, deadline=datetime.now(UTC) + timedelta(minutes=1))
    bench.lease(bench.session(), limit=1)
    bench.advance(120)  # that session's lease is over as well
    queue.tick()
    assert queue.tallies().failed == {"expired": 12}


def test_the_time_until_a_job_begins_is_counted_by_class(bench: Bench, queue: Queue) -> None:
    bench.submit(2, priority="urgent")
    bench.submit(1, priority="bulk", lane=OTHER_LANE)
    bench.advance(20)
    ages = queue.tallies().oldest_seconds
    assert ages.keys() == {Priority.URGENT, Priority.BULK}
    assert all(20 <= age < 60 for age in ages.values())
    session = bench.session()
    bench.lease(session, limit=1)
    bench.advance(100)
    bench.lease(session, limit=1)  # the job has begun before
    [(rank, waits)] = queue.tallies().waits.items()
    assert rank is Priority.URGENT
    assert waits.jobs == (0, 0, 0, 0, 0, 1, 0, 0, 0, 0)
    assert 20 <= waits.seconds < 60


def test_the_oldest_of_a_class_is_found_among_all_tenants(bench: Bench, queue: Queue) -> None:
    for tenant in ("ann", "bob"):
        bench.submit(1, tenant=tenant)
        bench.advance(20)
    assert queue.tallies().oldest_seconds[Priority.NORMAL] >= 40


def test_a_job_that_begins_at_once_is_counted_too(bench: Bench, queue: Queue) -> None:
    queue.client.set("{farm}:test-clock", -3_600_000)  # the server's clock was set back
    bench.submit(1)
    bench.lease(bench.session())
    assert sum(queue.tallies().waits[Priority.NORMAL].jobs) == 1


def test_a_session_that_has_ended_leases_nothing(bench: Bench, queue: Queue) -> None:
    bench.submit(1)
    session = bench.session()
    queue.end(session, "lost")
    with pytest.raises(LeaseLost):
        queue.lease(session, None, 10, MS)
    assert queue.tallies().leases == 0


def test_both_sides_have_the_same_buckets() -> None:
    written = re.search(r"WAITS = \{(.*)\}", read_parts()["tallies"])
    assert written
    assert tuple(map(float, written[1].split(","))) == WAIT_BUCKETS
