"""Who is served next."""

from collections import Counter

import pytest
from queue_bench import CHECKPOINT, LANE, MS, Bench

from farm.errors import InvalidInput
from farm.job import Lease, Priority
from farm.queue import Queue


def serve(bench: Bench, session: str, tasks: int, at_once: int = 1) -> list[Lease]:
    """Lease and release nothing: what is granted counts as served."""
    served: list[Lease] = []
    while len(served) < tasks:
        leases = bench.lease(session, room=10**6, limit=at_once)
        assert leases
        served += leases
    return served


def owners(bench: Bench, leases: list[Lease]) -> Counter[str]:
    tenant_of = {
        status.id: tenant
        for tenant in ("ann", "bob", "eve")
        for status in bench.queue.jobs(tenant, 200)
    }
    return Counter(tenant_of[lease.job] for lease in leases)


def backlog(bench: Bench, tenant: str, tasks: int, cost: int = 12, **options: object) -> None:
    for _ in range(0, tasks, 200):
        bench.submit(200, tenant=tenant, pictures=1, cost=cost, **options)


def test_tenants_share_by_weight_within_two_percent(bench: Bench, queue: Queue) -> None:
    queue.set_weight("bob", 3)
    for tenant in ("ann", "bob", "eve"):
        backlog(bench, tenant, 3200)
    got = owners(bench, serve(bench, bench.session(), 5000, at_once=50))
    assert got["bob"] / 5000 == pytest.approx(0.6, abs=0.02)
    assert got["ann"] / 5000 == pytest.approx(0.2, abs=0.02)
    assert got["eve"] / 5000 == pytest.approx(0.2, abs=0.02)


def test_a_share_is_counted_in_row_steps_and_not_in_tasks(bench: Bench) -> None:
    backlog(bench, "ann", 400, cost=10)
    backlog(bench, "bob", 400, cost=30)
    got = owners(bench, serve(bench, bench.session(), 400, at_once=20))
    assert got["ann"] == pytest.approx(300, abs=4)


def test_a_new_tenant_gets_its_share_at_once(bench: Bench) -> None:
    backlog(bench, "ann", 2000)
    session = bench.session()
    serve(bench, session, 1000, at_once=100)
    bench.submit(5, tenant="bob", pictures=1, cost=12)
    got = serve(bench, session, 12)
    assert owners(bench, got)["bob"] == 5


def test_a_small_new_tenant_behind_a_backlog_of_95_000_gets_its_share_at_once(
    bench: Bench, queue: Queue
) -> None:
    for number in range(5):
        header = bench.header(tenant="ann" if number % 2 else "eve")
        queue.open(header)
        for piece in range(95):
            tasks = bench.tasks(200, pictures=1000, cost=12_000, first=200 * piece)
            queue.append(header.job, piece, "a" * 64, tasks)
        queue.close(header.job, 95)
    assert sum(work.tasks for work in queue.backlog()) == 95_000
    session = bench.session()
    serve(bench, session, 1000, at_once=200)
    bench.submit(8, tenant="bob", pictures=1, cost=12_000)
    # A third is bob's from the first grant on, one at a time and many at once.
    got = owners(bench, [lease for _ in range(12) for lease in serve(bench, session, 1)])
    assert got["bob"] == 4
    got = owners(bench, serve(bench, session, 12, at_once=12))
    assert got == {"ann": 4, "bob": 4, "eve": 4}
    assert set(owners(bench, serve(bench, session, 4))) == {"ann", "eve"}, "bob has no more"


def test_who_was_served_in_another_lane_does_not_go_first_in_this_one(
    bench: Bench, queue: Queue
) -> None:
    far, near = LANE._replace(height=512), LANE
    for tenant in ("ann", "bob", "eve"):
        bench.submit(20, tenant=tenant, pictures=1, cost=12, lane=near)
    for tenant in ("ann", "bob"):
        bench.submit(20, tenant=tenant, pictures=1, cost=12, lane=far)
    session = bench.session()
    assert len(queue.lease(session, [far], 100, MS, limit=40)) == 40
    got = [queue.lease(session, [near], 1, MS, limit=1)[0] for _ in range(20)]
    assert owners(bench, got) == {"eve": 20}


def test_an_idle_tenant_saves_nothing_up(bench: Bench) -> None:
    session = bench.session()
    bench.submit(1, tenant="bob", pictures=1, cost=12)
    serve(bench, session, 1)
    backlog(bench, "ann", 1000)
    serve(bench, session, 500, at_once=50)
    backlog(bench, "bob", 400)
    got = owners(bench, serve(bench, session, 200, at_once=10))
    assert got["ann"] == pytest.approx(100, abs=3)


def test_urgent_goes_first_and_the_lower_classes_keep_a_tenth_each(bench: Bench) -> None:
    for priority in Priority:
        backlog(bench, "ann", 1200, priority=priority)
    got = Counter(lease.priority for lease in serve(bench, bench.session(), 1000, at_once=25))
    assert got[Priority.NORMAL] == pytest.approx(100, abs=5)
    assert got[Priority.BULK] == pytest.approx(100, abs=5)


def test_the_lowest_class_keeps_a_tenth_when_one_is_above_it(bench: Bench) -> None:
    for priority in (Priority.NORMAL, Priority.BULK):
        backlog(bench, "ann", 1000, priority=priority)
    got = Counter(lease.priority for lease in serve(bench, bench.session(), 600))
    assert got[Priority.BULK] == pytest.approx(60, abs=3)


def test_one_urgent_picture_passes_every_backlog(bench: Bench) -> None:
    backlog(bench, "ann", 400, priority="bulk")
    session = bench.session()
    serve(bench, session, 100)
    job = bench.submit(1, tenant="bob", priority="urgent")
    assert serve(bench, session, 1)[0].job == job


def test_a_lane_without_workers_holds_up_no_other_lane(bench: Bench) -> None:
    """A newcomer joins a lane where it stands, also when the class has gone far ahead of it."""
    far, near = LANE._replace(height=512), LANE
    bench.submit(100, tenant="ann", pictures=1, lane=far)
    backlog(bench, "bob", 600)
    session = bench.session()
    for _ in range(10):
        bench.queue.lease(session, [near], 10**6, MS, limit=50)
    bench.submit(20, tenant="eve", pictures=1, lane=far)
    got = [bench.queue.lease(session, [far], 1, MS, limit=1)[0] for _ in range(20)]
    assert owners(bench, got)["eve"] == pytest.approx(10, abs=1)


def test_a_session_is_given_its_checkpoints_and_lanes_only(bench: Bench, queue: Queue) -> None:
    other = LANE._replace(checkpoint="other/model@r1")
    wide = LANE._replace(width=512)
    for lane in (LANE, other, wide):
        bench.submit(2, lane=lane)
    assert {lease.lane for lease in bench.lease(bench.session())} == {str(LANE), str(wide)}
    assert {lease.lane for lease in bench.lease(bench.session(("other/model@r1",)))} == {str(other)}
    both = bench.session((CHECKPOINT, "other/model@r1"))
    bench.submit(2, lane=LANE)
    bench.submit(2, lane=other)
    assert {lease.lane for lease in bench.lease(both)} == {str(LANE), str(other)}
    bench.submit(2, lane=LANE)
    assert queue.lease(both, [other], 100, MS) == []


def test_room_is_counted_in_pictures_and_a_task_is_never_split(bench: Bench) -> None:
    bench.submit(5, pictures=10)
    session = bench.session()
    assert len(bench.lease(session, room=0)) == 0
    assert len(bench.lease(session, room=1)) == 1
    assert len(bench.lease(session, room=20)) == 2
    assert len(bench.lease(session, room=11)) == 2


def test_jobs_of_one_tenant_run_in_the_order_they_came(bench: Bench) -> None:
    jobs = [bench.submit(2) for _ in range(3)]
    assert [lease.job for lease in bench.lease(bench.session())] == [
        job for job in jobs for _ in range(2)
    ]


def test_one_call_takes_from_very_many_jobs_and_tenants(bench: Bench) -> None:
    """More of them than are read at once, and more tasks of one job than are."""
    few = [bench.submit(1, tenant="ann", pictures=1, cost=12) for _ in range(120)]
    for number in range(40):
        bench.submit(2, tenant=f"tenant-{number}", pictures=1, cost=12)
    long = bench.submit(60, tenant="bob", pictures=1, cost=0)
    got = serve(bench, bench.session(), 260, at_once=200)
    assert [lease.job for lease in got if lease.job in few] == few
    assert [lease.number for lease in got if lease.job == long] == list(range(60))
    assert len({lease.key for lease in got}) == 260
    assert bench.lease(bench.session()) == []


def test_a_suspect_waits_until_a_busy_session_has_made_itself_free(bench: Bench) -> None:
    bench.submit(2)
    first = bench.session()
    bench.lease(first)
    bench.queue.end(first, "crash")
    bench.advance(61)
    bench.queue.tick()
    bench.submit(50, tenant="bob")
    busy = bench.session()
    # Two suspects, so two sessions at most make themselves free; this one takes the first at once.
    [suspect] = bench.lease(busy)
    assert suspect.alone
    others = [bench.session() for _ in range(3)]
    bench.complete(busy, suspect)
    assert not bench.lease(others[2], limit=1)[0].alone, "others get as much in between"
    [second] = bench.lease(others[0])
    assert second.alone
    ordinary = bench.lease(others[1], limit=3)
    assert len(ordinary) == 3
    assert not any(lease.alone for lease in ordinary)


def test_a_working_session_drains_for_a_suspect_and_goes_on_after_it(bench: Bench) -> None:
    bench.submit(50, tenant="bob", pictures=1)
    session = bench.session()
    aboard = bench.lease(session, limit=2)
    bench.submit(2, priority="urgent")
    crashed = bench.session()
    assert len(bench.lease(crashed, limit=2)) == 2
    bench.queue.end(crashed, "crash")
    bench.advance(25)  # not so long that the session is given up
    bench.queue.heartbeat(session, 0, {}, {}, 10**7)
    bench.advance(60)
    bench.queue.tick()
    assert bench.lease(session) == []
    for lease in aboard:
        bench.complete(session, lease)
    for _ in range(2):
        [suspect] = bench.lease(session)
        assert suspect.alone
        assert bench.lease(session) == [], "nothing comes aboard beside it"
        bench.complete(session, suspect)
        [ordinary] = bench.lease(session, limit=1)  # others get as much as the suspect did
        assert not ordinary.alone
        bench.complete(session, ordinary)
        for lease in bench.queue.held(session):
            bench.complete(session, lease)
    assert len(bench.lease(session, limit=4)) == 4


def test_a_thousand_idle_workers_write_nothing(bench: Bench, queue: Queue) -> None:
    sessions = [bench.session() for _ in range(50)]
    for session in sessions:
        bench.lease(session)
    before = queue.client.info("persistence")["aof_current_size"]
    for session in sessions:
        bench.lease(session)
    assert queue.client.info("persistence")["aof_current_size"] == before


def test_a_weight_must_be_sensible(queue: Queue) -> None:
    for weight in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InvalidInput):
            queue.set_weight("ann", weight)


def test_room_kept_for_urgent_work_takes_nothing_else(bench: Bench, queue: Queue) -> None:
    for priority in (Priority.NORMAL, Priority.BULK):
        bench.submit(2, priority=priority)
    session = bench.session()
    assert queue.lease(session, None, 100, MS, lowest=Priority.URGENT) == []
    urgent = bench.submit(2, priority="urgent")
    granted = queue.lease(session, None, 100, MS, lowest=Priority.URGENT)
    assert [lease.job for lease in granted] == [urgent, urgent]
    granted = queue.lease(session, None, 100, MS, lowest=Priority.NORMAL)
    assert [lease.priority for lease in granted] == [Priority.NORMAL] * 2


def test_room_kept_for_urgent_work_is_not_given_up_for_a_bulk_suspect(
    bench: Bench, queue: Queue
) -> None:
    bench.submit(2, priority="bulk")
    crashed = bench.session()
    bench.lease(crashed)
    queue.end(crashed, "crash")
    bench.advance(61)
    queue.tick()
    session = bench.session()
    bench.submit(1, priority="urgent")
    assert queue.lease(session, None, 9, MS, lowest=Priority.URGENT)[0].priority is Priority.URGENT
    assert queue.lease(session, None, 9, MS, lowest=Priority.URGENT) == []
    bench.submit(1, priority="urgent")
    assert len(queue.lease(session, None, 9, MS, lowest=Priority.URGENT)) == 1


def test_no_more_sessions_make_themselves_free_than_there_are_suspects(bench: Bench) -> None:
    bench.submit(20, tenant="bob", pictures=1)
    busy = [bench.session() for _ in range(6)]
    for session in busy:
        bench.lease(session, limit=1)
        bench.queue.heartbeat(session, 0, {}, {}, 10**7)
    bench.submit(2, priority="urgent")
    crashed = bench.session()
    bench.lease(crashed, limit=2)
    bench.queue.end(crashed, "crash")
    bench.advance(61)
    bench.queue.tick()
    got = [len(bench.lease(session, limit=1)) for session in busy]
    assert got == [0, 0, 1, 1, 1, 1]
    # Who makes itself free goes on doing so, and the others go on working.
    assert [len(bench.lease(session, limit=1)) for session in reversed(busy)] == [1, 1, 1, 1, 0, 0]
