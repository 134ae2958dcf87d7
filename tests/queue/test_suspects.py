"""What loses or crashes its workers runs alone, and takes no neighbour with it."""

import pytest
from queue_bench import LANE, MS, Bench

from farm.job import JobState, Lease, Priority
from farm.queue import Command, Queue


def later(bench: Bench) -> None:
    """Every wait is over."""
    bench.advance(61)
    bench.queue.tick()


def lose(bench: Bench, times: int = 3) -> None:
    """Whatever is ready loses its worker."""
    for _ in range(times):
        session = bench.session()
        assert bench.lease(session)
        bench.queue.end(session, "lost")
        later(bench)


@pytest.mark.parametrize("culprits", [1, 4])
def test_what_loses_every_worker_fails_alone_and_its_neighbours_are_done(
    culprits: int, bench: Bench, queue: Queue
) -> None:
    bad = {bench.submit(1, tenant="bob", pictures=1) for _ in range(culprits)}
    innocent = bench.submit(1, pictures=500)
    rounds = 0
    while not queue.status(innocent, "ann").ended_at:
        rounds += 1
        assert rounds < 30 * culprits
        session = bench.session()
        while leases := bench.lease(session):
            if bad & {lease.job for lease in leases if not lease.finalise}:
                break
            for lease in leases:
                bench.complete(session, lease)
        queue.end(session, "lost")
        later(bench)
    status = queue.status(innocent, "ann")
    assert (status.state, status.images.done) == (JobState.DONE, 500)
    while any(queue.status(job, "bob").tasks.failed == 0 for job in bad):
        lose(bench, 1)
    for job in bad:
        assert "lost 20 times" in queue.failures(job)[0].reason


def test_a_task_that_may_be_to_blame_runs_without_company_but_all_rows_together(
    bench: Bench, queue: Queue
) -> None:
    bench.submit(1)
    lose(bench)
    bench.submit(1)
    session = bench.session()
    [suspect] = bench.lease(session)
    assert (suspect.attempt, suspect.alone) == (4, False)
    assert bench.lease(session) == []
    assert queue.sessions()[0].room == 0
    bench.complete(session, suspect)
    assert len(bench.lease(session)) == 1


def test_a_call_for_urgent_work_gets_no_other_task_that_runs_alone(
    bench: Bench, queue: Queue
) -> None:
    suspects(bench, 1, "ann")
    session = bench.session()
    assert queue.lease(session, None, 10, MS, lowest=Priority.URGENT) == []
    assert len(bench.lease(session)) == 1


def test_a_task_that_was_lost_twice_has_company(bench: Bench) -> None:
    bench.submit(2)
    lose(bench, 2)
    assert len(bench.lease(bench.session())) == 2


def test_an_isolated_task_that_crashes_runs_row_by_row(bench: Bench, queue: Queue) -> None:
    job = bench.submit(1)
    lose(bench)
    for alone in (False, True, True):
        session = bench.session()
        [lease] = bench.lease(session)
        assert lease.alone is alone
        assert queue.status(job, "ann").tasks.failed == 0
        queue.end(session, "crash")
        later(bench)
    assert queue.status(job, "ann").tasks.failed == 1, "crashed twice while it ran row by row"


def suspects(bench: Bench, count: int, tenant: str) -> str:
    """A job of which every task runs alone."""
    job = bench.submit(count, tenant=tenant, pictures=1)
    session = bench.session()
    assert len(bench.lease(session, limit=200)) == count
    bench.queue.end(session, "crash")
    later(bench)
    return job


def test_a_session_that_has_drained_takes_the_task_whatever_lanes_it_is_offered_then(
    bench: Bench, queue: Queue
) -> None:
    alone = suspects(bench, 1, "bob")
    busy = LANE._replace(height=512)
    bench.submit(3, lane=busy)
    session = bench.session()
    [lease] = queue.lease(session, [busy], 1, MS)
    assert bench.lease(session) == [], "it begins to drain"
    bench.complete(session, lease)
    assert [lease.job for lease in queue.lease(session, [busy], 1000, MS)] == [alone]


def test_tasks_of_a_paused_job_that_run_alone_hide_nobody_elses(bench: Bench, queue: Queue) -> None:
    paused = suspects(bench, 70, "bob")
    queue.pause(paused, "bob")
    alone = suspects(bench, 1, "ann")
    plain = bench.submit(1)
    session, other = bench.session(), bench.session()
    assert {ready.tasks for ready in queue.backlog()} == {2}
    [first] = bench.lease(session)
    [second] = bench.lease(other)
    assert (first.job, first.alone, second.job, second.alone) == (alone, True, plain, False)
    assert queue.why(paused, "bob").alone == 70
    bench.complete(session, first)
    assert [lease for lease in bench.lease(session) if not lease.finalise] == []
    queue.resume(paused, "bob")
    [resumed] = [lease for lease in bench.lease(bench.session()) if not lease.finalise]
    assert (resumed.job, resumed.alone) == (paused, True)


def test_what_comes_back_while_its_job_is_paused_runs_alone_when_it_is_resumed(
    bench: Bench, queue: Queue
) -> None:
    job = bench.submit(2)
    session = bench.session()
    bench.lease(session)
    queue.pause(job, "ann")
    queue.end(session, "crash")
    later(bench)
    session = bench.session()
    assert bench.lease(session) == []
    queue.resume(job, "ann")
    done: list[Lease] = []
    while leases := bench.lease(session) or queue.held(session):
        assert len(leases) == 1
        done += leases
        bench.complete(session, leases[0])
    assert [lease.alone for lease in done] == [True, True, False], "the last finalises"


@pytest.mark.parametrize("end", ["cancel", "deadline"])
def test_a_job_that_ends_leaves_nothing_that_runs_alone(
    end: str, bench: Bench, queue: Queue
) -> None:
    job = suspects(bench, 3, "ann")
    if end == "cancel":
        queue.cancel(job, "ann")
    else:
        queue.client.zadd("{farm}:deadlines", {job: 1})
        later(bench)
        assert queue.status(job, "ann").tasks.expired == 3
    assert queue.client.keys("{farm}:alone:*") == []
    assert queue.client.keys("{farm}:suspects:*") == []
    assert queue.backlog() == []


@pytest.mark.parametrize("lost", ["alone", "suspects", "both"])
def test_a_lost_task_that_runs_alone_is_found_and_repaired(
    lost: str, bench: Bench, queue: Queue
) -> None:
    job = suspects(bench, 2, "ann")
    for kind in ("alone", "suspects"):
        if lost in (kind, "both"):
            queue.client.delete(*queue.client.keys(f"{{farm}}:{kind}:*"))
    assert queue.check() != []
    assert queue.check() == []
    session = bench.session()
    assert [lease.job for lease in bench.lease(session)] == [job]


def test_a_job_listed_with_tasks_that_run_alone_for_nothing_is_found(
    bench: Bench, queue: Queue
) -> None:
    job = suspects(bench, 1, "ann")
    queue.pause(job, "ann")
    queue.client.zadd("{farm}:suspects:1", {job: 1})
    [finding] = queue.check()
    assert "none that may start" in finding


def test_what_is_listed_to_run_alone_and_is_gone_stops_no_lease(bench: Bench, queue: Queue) -> None:
    """An earlier farm listed tasks here, not jobs."""
    job = bench.submit(1)
    queue.client.zadd("{farm}:suspects:1", {f"{job}/0/0": 1, bench.header().job: 2})
    assert [lease.job for lease in bench.lease(bench.session())] == [job]
    assert queue.client.exists("{farm}:suspects:1") == 0


def test_tasks_that_run_alone_take_half_of_the_workers_at_most(bench: Bench, queue: Queue) -> None:
    bad = suspects(bench, 12, "bob")
    sessions = [bench.session() for _ in range(5)]
    held = [bench.lease(session) for session in sessions]
    assert [len(leases) for leases in held] == [1, 1, 0, 0, 0]
    urgent = bench.submit(1, priority="urgent")
    assert [lease.job for lease in bench.lease(sessions[3])] == [urgent]
    bench.complete(sessions[0], held[0][0])
    assert [lease.job for lease in bench.lease(sessions[4])] == [bad], "one may follow another"
    assert bench.lease(sessions[0]) == []


def test_sessions_that_drain_count_as_those_that_run_a_task_alone(
    bench: Bench, queue: Queue
) -> None:
    bad = suspects(bench, 6, "bob")
    queue.pause(bad, "bob")
    bench.submit(40, tenant="ann", pictures=1)
    sessions = [bench.session() for _ in range(4)]
    held = {session: bench.lease(session, limit=1) for session in sessions}
    queue.resume(bad, "bob")
    assert [len(bench.lease(session, limit=1)) for session in sessions] == [0, 0, 1, 1]
    for session in sessions[:2]:
        bench.complete(session, held[session][0])
        assert [lease.job for lease in bench.lease(session)] == [bad]


def test_after_a_task_that_ran_alone_others_get_as_much_whatever_became_of_its_worker(
    bench: Bench, queue: Queue
) -> None:
    bad = suspects(bench, 3, "bob")
    first = bench.session()
    assert [lease.job for lease in bench.lease(first)] == [bad]
    urgent = bench.submit(1, priority="urgent", pictures=1)
    queue.end(first, "crash")
    second = bench.session()
    [lease] = bench.lease(second)
    assert lease.job == urgent, "before the next one that may take its worker"
    bench.complete(second, lease)
    while lease.finalise or lease.job == urgent:
        [lease] = bench.lease(second) or queue.held(second)
        if lease.finalise:
            bench.complete(second, lease)
    assert lease.job == bad


def test_a_task_that_runs_alone_waits_for_no_lower_class(bench: Bench, queue: Queue) -> None:
    bad = suspects(bench, 2, "bob")
    first = bench.session()
    assert [lease.job for lease in bench.lease(first)] == [bad]
    bench.submit(1, priority="bulk", pictures=1)
    queue.end(first, "lost")
    assert [lease.job for lease in bench.lease(bench.session())] == [bad]


def test_a_task_that_runs_alone_waits_for_none_that_its_worker_is_not_offered(
    bench: Bench, queue: Queue
) -> None:
    bad = suspects(bench, 2, "bob")
    session = bench.session()
    [first] = bench.lease(session)
    bench.complete(session, first)
    bench.submit(1, lane=LANE._replace(height=512))
    assert [lease.job for lease in queue.lease(session, [LANE], 1000, MS)] == [bad]


def test_tasks_that_run_alone_get_their_turn_among_endless_others(
    bench: Bench, queue: Queue
) -> None:
    bad = suspects(bench, 3, "bob")
    endless = bench.submit(100, pictures=1)
    session = bench.session()
    order = []
    for _ in range(8):
        [lease] = bench.lease(session, limit=1)
        order.append(lease.job == bad)
        bench.complete(session, lease)
    assert order == [True, False] * 3 + [False] * 2
    assert queue.status(endless, "ann").tasks.done == 5


def test_what_an_earlier_farm_listed_to_run_alone_is_found(bench: Bench, queue: Queue) -> None:
    job = suspects(bench, 1, "ann")
    for kind in ("alone", "suspects"):
        queue.client.delete(*queue.client.keys(f"{{farm}}:{kind}:*"))
    queue.client.zadd("{farm}:suspects:1", {f"{job}/0/0": 1})
    session = bench.session()
    assert bench.lease(session) == [], "it is listed as it is now"
    assert [lease.job for lease in bench.lease(session)] == [job]
    assert queue.check() == []


def test_a_worker_that_is_told_to_drain_keeps_no_other_from_tasks_that_run_alone(
    bench: Bench, queue: Queue
) -> None:
    bad = suspects(bench, 1, "bob")
    queue.pause(bad, "bob")
    bench.submit(1)
    told, other = bench.session(), bench.session()
    assert bench.lease(told)
    queue.resume(bad, "bob")
    assert bench.lease(told) == [], "it drains for the task that runs alone"
    assert bench.lease(other) == []
    queue.set_command(told, Command("drain"))
    assert [lease.job for lease in bench.lease(other)] == [bad]
