"""After much has happened a check finds nothing, and what is forgotten leaves nothing behind."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from queue_bench import LANE, OTHER_LANE, Bench

from farm.queue import Queue

# What stays when every job and session is gone: names of tenants, checkpoints and classes of
# numerics, which grow with what a farm serves and not with what it did.
LASTING = {
    "asset-bytes", "checkpoint:numbers", "checkpoint:texts", "counters", "events",
    "fair:#:#", "lanes-of:JOB", "numerics:numbers", "numerics:texts", "server", "tallies",
    "tenant:numbers", "tenant:texts", "test-clock", "ticked", "weights", "yielded",
}  # fmt: skip


def kinds(keys: Iterable[str]) -> set[str]:
    """Keys with their ids and numbers blotted out."""
    blotted = (re.sub(r"j0-[0-9a-z]{26}", "JOB", key.removeprefix("{farm}:")) for key in keys)
    return {re.sub(r":\d+", ":#", key) for key in blotted}


def live(bench: Bench, queue: Queue) -> None:
    """Jobs of every fate."""
    soon = (datetime.now(UTC) + timedelta(seconds=30)).isoformat()
    queue.set_weight("bob", 2)
    queue.client.hincrby("{farm}:asset-bytes", "ann", 1000)  # as the gateway's quotas do
    for tenant in ("ann", "bob"):
        for lane in (LANE, OTHER_LANE):
            bench.submit(3, tenant=tenant, lane=lane, max_failed=100)
            bench.submit(2, tenant=tenant, lane=lane, priority="urgent", idempotency_key=f"{lane}")
    bench.submit(2, deadline=soon)
    paused, cancelled = bench.submit(2), bench.submit(2)
    header = bench.header()
    queue.open(header)
    queue.note_lanes(header.job, {LANE}, 256)
    queue.append(header.job, 0, "a" * 64, bench.tasks(2))
    queue.pause(paused, "ann")
    for end in ("crash", "lost", "drain"):
        session = bench.session((LANE.checkpoint, OTHER_LANE.checkpoint))
        for lease in bench.lease(session, limit=6):
            if lease.number == 1 and not lease.finalise:
                queue.fail(session, lease, "row", "unreadable")
            elif lease.number == 2:
                bench.complete(session, lease, failed=1)
        queue.end(session, end)  # type: ignore[arg-type]
        bench.advance(15)
        queue.tick()
    queue.cancel(cancelled, "ann")
    session = bench.session((LANE.checkpoint, OTHER_LANE.checkpoint))
    while leases := bench.lease(session) or queue.held(session):
        for lease in leases:
            bench.complete(session, lease)
    for status in queue.jobs("bob"):
        if status.images.failed:
            queue.retry(status.id, "bob")
    bench.lease(session, limit=1)


def test_a_check_finds_nothing_after_a_busy_life(bench: Bench, queue: Queue) -> None:
    live(bench, queue)
    assert {"waiting", "opened", "alone:JOB:#"} & kinds(queue.client.keys()) != set()
    assert queue.check(repair=False) == []


def test_what_is_forgotten_leaves_nothing_behind(bench: Bench, queue: Queue) -> None:
    live(bench, queue)
    for session in queue.sessions():
        queue.end(session.session, "drain")
    for tenant in ("ann", "bob"):
        for status in queue.jobs(tenant):
            queue.cancel(status.id, tenant)
    bench.advance(31 * 86400)
    for _ in range(10):
        queue.tick()
        bench.advance(1)
    assert queue.jobs("ann") == queue.jobs("bob") == []
    left = queue.client.keys()
    assert kinds(left) <= LASTING
    assert all(queue.client.ttl(key) > 0 for key in left if "lanes-of" in key)
    bench.submit(1, idempotency_key="again")


def test_how_long_ended_jobs_are_known_is_a_setting(bench: Bench, queue: Queue) -> None:
    queue.keep(retention_days=2, open_hours=24)
    queue.cancel(bench.submit(1), "ann")
    bench.advance(2 * 86400 - 60)
    queue.tick()
    assert len(queue.jobs("ann")) == 1
    bench.advance(120)
    queue.tick()
    assert queue.jobs("ann") == []
