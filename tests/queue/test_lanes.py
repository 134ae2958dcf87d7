"""How many lanes a tenant may work in, and what becomes of those that nothing uses any longer."""

from datetime import UTC, datetime, timedelta

import pytest
from queue_bench import CHECKPOINT, LANE, MS, Bench

from farm.errors import OverQuota
from farm.job import JobState, Priority, TaskDraft
from farm.queue import MAX_ROWS, Queue, Restored
from farm.queue.constants import MAX_TENANT_LANES
from farm.spec import Lane, Mode

SIZES = [Lane(CHECKPOINT, Mode.TEXT2IMG, 8 * at, 8) for at in range(1, MAX_TENANT_LANES + 2)]


def submit(bench: Bench, lanes: list[Lane], tenant: str = "ann", **options: object) -> str:
    tasks = [TaskDraft(at, lane, 1, 12) for at, lane in enumerate(lanes)]
    return bench.queue.submit(bench.header(tenant, **options), tasks).job


def fill(bench: Bench) -> list[str]:
    """As many lanes as a tenant may have."""
    starts = range(0, MAX_TENANT_LANES, MAX_ROWS)
    return [submit(bench, SIZES[at : min(at + MAX_ROWS, MAX_TENANT_LANES)]) for at in starts]


def test_a_tenants_unfinished_work_is_of_a_bounded_number_of_lanes(
    bench: Bench, queue: Queue
) -> None:
    jobs = fill(bench)
    submit(bench, SIZES[:MAX_ROWS])
    with pytest.raises(OverQuota, match=str(MAX_TENANT_LANES)):
        submit(bench, SIZES[-1:])
    header = bench.header()
    queue.open(header)
    assert queue.append(header.job, 0, "a" * 64, bench.tasks(1, lane=SIZES[7]))
    with pytest.raises(OverQuota):
        queue.append(header.job, 1, "b" * 64, bench.tasks(1, first=1, lane=SIZES[-1]))
    assert queue.status(header.job, "ann").tasks.total == 1, "nothing of it was written"
    submit(bench, SIZES[-1:], tenant="bob")
    queue.cancel(jobs[1], "ann")
    submit(bench, SIZES[-1:])


def test_lanes_of_a_job_that_is_done_are_free_and_those_of_a_retry_are_not(
    bench: Bench, queue: Queue
) -> None:
    job = submit(bench, SIZES[:3])
    session = bench.session()
    while leases := bench.lease(session) or queue.held(session):
        for lease in leases:
            bench.complete(session, lease, failed=lease.pictures)
    assert queue.status(job, "ann").state is JobState.FAILED
    busy = "{farm}:busy-lanes:1"
    assert queue.client.hlen(busy) == 0
    queue.retry(job, "ann")
    assert queue.client.hlen(busy) == 3
    queue.cancel(job, "ann")
    assert queue.client.hlen(busy) == 0


LANE_KEYS = ["lane:numbers", "lane:texts", "lane:checkpoints", "lane:jobs"]


def sizes_known(queue: Queue) -> list[int]:
    return [int(queue.client.hlen(f"{{farm}}:{key}")) for key in LANE_KEYS]


def test_a_lane_is_forgotten_with_the_last_job_that_had_tasks_in_it(
    bench: Bench, queue: Queue
) -> None:
    first, second = submit(bench, SIZES[:3]), submit(bench, SIZES[2:4])
    assert sizes_known(queue) == [4] * 4
    queue.cancel(first, "ann")
    assert sizes_known(queue) == [4] * 4, "a job that has ended can be looked at and retried"
    bench.advance(31 * 86400)
    queue.tick()
    assert sizes_known(queue) == [2] * 4
    submit(bench, SIZES[:1])
    session = bench.session()
    assert {lease.lane for lease in bench.lease(session)} == {
        str(SIZES[0]), str(SIZES[2]), str(SIZES[3]),
    }  # fmt: skip
    queue.cancel(second, "ann")


def test_one_tick_forgets_only_so_much(bench: Bench, queue: Queue) -> None:
    for _ in range(5):
        queue.cancel(submit(bench, SIZES[:MAX_ROWS]), "ann")
    bench.advance(31 * 86400)
    left = []
    for _ in range(3):
        queue.tick()
        bench.advance(1)
        left.append(len(queue.jobs("ann")))
    assert left == [3, 1, 0]
    assert sizes_known(queue) == [0] * 4


def test_the_planner_sees_some_of_very_many_lanes(bench: Bench, queue: Queue) -> None:
    fill(bench)
    bench.submit(1, tenant="bob", priority="urgent")
    seen = [queue.backlog() for _ in range(2)]
    assert [len(work) for work in seen] == [257, 257]
    assert {work[0].priority for work in seen} == {Priority.URGENT}
    assert seen[0] != seen[1], "another time it sees others"


@pytest.mark.parametrize("newer", [0, 1])
def test_a_lane_from_before_lanes_were_counted_stays(
    newer: int, bench: Bench, queue: Queue
) -> None:
    old = [submit(bench, SIZES[:1]) for _ in range(3)]
    queue.client.delete("{farm}:lane:jobs")
    for job in [*old[:2], *(submit(bench, SIZES[:1]) for _ in range(newer))]:
        queue.cancel(job, "ann")
    bench.advance(31 * 86400)
    queue.tick()
    assert queue.jobs("ann")[0].id == old[2], "the others are past their retention"
    assert [lease.job for lease in bench.lease(bench.session())] == [old[2]]


def test_lanes_of_a_job_that_was_put_back_are_its_own(bench: Bench, queue: Queue) -> None:
    header, created = bench.header(), datetime.now(UTC)
    queue.restore(header, created, 0)
    tasks = [
        Restored(at, 0, lane, 4, 48, lost=True, retry=True) for at, lane in enumerate(SIZES[:2])
    ]
    queue.restore_tasks(header.job, created, 0, tasks)
    queue.restored(header.job, deadline=None, rejected=0, pieces=[0], closed=True, ended=created)
    status = queue.status(header.job, "ann")
    assert (status.row_steps, queue.client.hlen("{farm}:busy-lanes:1")) == (96, 0)
    queue.retry(header.job, "ann")
    assert len(queue.backlog()) == 2
    queue.cancel(header.job, "ann")
    assert queue.backlog() == []


def test_one_tick_ends_only_so_much(bench: Bench, queue: Queue) -> None:
    deadline = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
    jobs = [submit(bench, SIZES[:MAX_ROWS], deadline=deadline) for _ in range(5)]
    bench.advance(61)
    expired = []
    for _ in range(3):
        queue.tick()
        bench.advance(1)
        expired.append(sum(queue.status(job, "ann").tasks.expired > 0 for job in jobs))
    assert expired == [2, 4, 5]


def test_one_lease_ends_only_so_much(bench: Bench, queue: Queue) -> None:
    deadline = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
    jobs = [submit(bench, SIZES[:MAX_ROWS], deadline=deadline) for _ in range(3)]
    bench.submit(1, priority="bulk")
    session = bench.session()
    queue.heartbeat(session, 1000, {}, {}, 10 * MS)
    bench.advance(61)
    bench.lease(session)
    assert sum(queue.status(job, "ann").tasks.expired > 0 for job in jobs) == 2
    bench.lease(session)
    assert [lease.lane for lease in queue.held(session) if lease.lane] == [str(LANE)]


def test_one_lease_ends_only_so_many_jobs_with_tasks_that_run_alone(
    bench: Bench, queue: Queue
) -> None:
    deadline = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
    jobs = [submit(bench, SIZES[:MAX_ROWS], deadline=deadline) for _ in range(4)]
    session = bench.session()
    for _ in jobs:
        bench.lease(session, limit=MAX_ROWS)
    queue.end(session, "crash")
    for _ in jobs:
        bench.advance(1)
        queue.tick()
    session = bench.session()
    queue.heartbeat(session, 1000, {}, {}, 10 * MS)
    bench.advance(61)
    expired = []
    for _ in range(2):
        bench.lease(session)
        expired.append(sum(queue.status(job, "ann").tasks.expired > 0 for job in jobs))
    assert expired == [2, 4]


def test_a_check_looks_at_fewer_lanes_in_a_call_if_there_are_many_tenants(
    bench: Bench, queue: Queue
) -> None:
    submit(bench, SIZES[:6])

    def calls() -> int:
        before = queue.client.info("commandstats")["cmdstat_evalsha"]["calls"]
        assert queue.check() == []
        return int(queue.client.info("commandstats")["cmdstat_evalsha"]["calls"] - before)

    few = calls()
    queue.client.hset("{farm}:tenant:texts", mapping={str(at): "" for at in range(2, 3000)})
    assert calls() == few + 2, "two lanes in a call, not all six"


def test_a_lane_that_is_forgotten_during_a_check_is_not_looked_at(
    bench: Bench, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(bench, SIZES[:1])
    monkeypatch.setattr(queue.client, "hkeys", lambda key: ["1", "99"])
    assert queue.check() == []


def test_a_job_of_more_lanes_than_one_may_have_now_is_cancelled(bench: Bench, queue: Queue) -> None:
    """As an earlier farm took it."""
    job = submit(bench, SIZES[:1])
    lanes = ",".join(map(str, range(1, 20_000)))
    queue.client.hset(f"{{farm}}:job:{job}", "ln", lanes)
    queue.client.hset("{farm}:lane:checkpoints", mapping=dict.fromkeys(lanes.split(","), 1))
    assert queue.cancel(job, "ann") is JobState.CANCELLED
    assert queue.backlog() == []


def test_a_busy_lane_that_is_not_counted_is_found_and_repaired(bench: Bench, queue: Queue) -> None:
    job = submit(bench, SIZES[:2])
    queue.client.delete("{farm}:busy-lanes:1")
    assert len(queue.check()) == 2
    assert queue.check() == []
    queue.cancel(job, "ann")
    assert queue.client.exists("{farm}:busy-lanes:1") == 0


def test_why_counts_the_pictures_of_higher_classes_in_every_lane(
    bench: Bench, queue: Queue
) -> None:
    for start in (0, MAX_ROWS):
        submit(bench, SIZES[start : start + MAX_ROWS], tenant="bob", priority="urgent")
    job = submit(bench, SIZES[:2])
    assert [lane.higher for lane in queue.why(job, "ann").lanes] == [2 * MAX_ROWS] * 2
