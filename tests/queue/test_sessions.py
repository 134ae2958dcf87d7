"""A worker's session: its leases, its heartbeats and its end."""

import pytest
from queue_bench import CHECKPOINT, LANE, MS, Bench

from farm.errors import InvalidInput, JobCancelled, LeaseLost
from farm.job import JobState, Priority, TaskState
from farm.queue import Command, Queue, Verdict


def test_a_lost_lease_cannot_finish_the_task(bench: Bench, queue: Queue) -> None:
    job = bench.submit(1)
    late, other = bench.session(), bench.session()
    [lease] = bench.lease(late)
    assert queue.end(late, "drain") == 1
    assert queue.end(late, "drain") == 0
    [again] = bench.lease(other)
    assert again.attempt == 2
    assert bench.complete(late, lease) == "stale"
    assert bench.complete(other, again) == "committed"
    outcome = queue.complete(late, lease, bench.receipt(lease, failed=1))
    assert outcome.verdict is Verdict.ALREADY
    assert outcome.receipt == bench.receipt(again), "the winner's"
    assert queue.status(job, "ann").images.done == 4


def test_a_lease_whose_reply_was_lost_grants_nothing_more(
    bench: Bench, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.submit(10, pictures=1)
    session = bench.session()
    monkeypatch.setattr("secrets.token_hex", lambda size: "request"[:size])
    assert bench.lease(session, room=4) == bench.lease(session, room=4)
    assert len(queue.held(session)) == 4


def test_cancelled_work_is_let_go(bench: Bench, queue: Queue) -> None:
    job = bench.submit(3)
    session = bench.session()
    [lease] = bench.lease(session, limit=1)
    queue.heartbeat(session, 0, {lease.key: (2, 0)}, {}, MS)
    assert queue.status(job, "ann").images.running_done == 2
    assert queue.cancel(job, "ann") is JobState.CANCELLED
    assert queue.cancel(job, "ann") is JobState.CANCELLED
    status = queue.status(job, "ann")
    assert (status.tasks.cancelled, status.images.running_done) == (3, 0)
    assert bench.lease(session) == []
    assert queue.held(session) == []
    assert bench.complete(bench.session(), lease) == "cancelled", "it was another's"
    answer = queue.heartbeat(session, 5, {}, {}, MS)
    assert (answer.held, answer.cancelled) == (set(), {lease.key})
    assert queue.backlog() == []
    with pytest.raises(JobCancelled):
        queue.append(job, 1, "a" * 64, bench.tasks(1, first=9))


def test_a_heartbeat_names_what_was_cancelled(bench: Bench, queue: Queue) -> None:
    keep, drop = bench.submit(1), bench.submit(1)
    session = bench.session()
    first, second = bench.lease(session)
    queue.cancel(drop, "ann")
    answer = queue.heartbeat(session, 5, {}, {}, MS)
    assert first.job == keep
    assert (answer.held, answer.cancelled, answer.command) == ({first.key}, {second.key}, None)


def test_an_ended_session_is_told_so(bench: Bench, queue: Queue) -> None:
    session = bench.session()
    queue.end(session, "drain")
    with pytest.raises(LeaseLost):
        queue.heartbeat(session, 1, {}, {}, MS)
    with pytest.raises(LeaseLost):
        bench.lease(session)


def test_a_session_with_a_command_gets_no_work(bench: Bench, queue: Queue) -> None:
    bench.submit(1)
    session = bench.session()
    assert queue.set_command(session, "drain")
    assert bench.lease(session) == []
    assert queue.heartbeat(session, 1, {}, {}, MS).command == "drain"
    queue.set_command(session, None)
    assert len(bench.lease(session)) == 1


def test_a_silent_session_is_given_up_after_its_lease(bench: Bench, queue: Queue) -> None:
    job = bench.submit(1)
    session = bench.session()
    [lease] = bench.lease(session)
    queue.tick()
    bench.advance(29)
    queue.tick()
    assert queue.held(session) == [lease]
    queue.heartbeat(session, 0, {}, {}, MS)
    bench.advance(29)
    queue.tick()
    assert queue.held(session) == [lease]
    bench.advance(2)
    queue.tick()
    assert queue.held(session) == []
    assert queue.sessions() == []
    assert queue.status(job, "ann").tasks.waiting == 1
    bench.advance(5)
    queue.tick()
    assert queue.status(job, "ann").tasks.queued == 1


def test_a_heartbeat_says_how_long_a_session_lasts_from_then_on(bench: Bench, queue: Queue) -> None:
    """The time until the first heartbeat is long, because a worker may still be loading;
    one that dies after its first heartbeat must not keep its tasks that long."""
    session = bench.session()
    job = bench.submit()
    bench.lease(session)
    queue.heartbeat(session, 0, {}, {}, 5_000)
    bench.advance(6)
    queue.tick()
    assert queue.sessions() == []
    assert queue.status(job, "ann").tasks.leased == 0


def test_released_work_is_first_again_and_costs_nothing(bench: Bench, queue: Queue) -> None:
    bench.submit(3)
    session = bench.session()
    for _ in range(50):
        [lease] = bench.lease(session, limit=1)
        assert lease.number == 0
        assert queue.fail(session, lease, "release", "drained") is TaskState.QUEUED
    assert lease.attempt == 50


def test_the_planner_sees_sessions_and_work(bench: Bench, queue: Queue) -> None:
    bench.submit(2, priority="bulk")
    session = bench.session()
    queue.heartbeat(session, 10, {}, {"rows": 3}, MS)
    [work] = queue.backlog()
    assert work == (LANE, Priority.BULK, 2, 8)
    [lease] = queue.lease(session, [LANE], 10, MS, limit=1)
    [seen] = queue.sessions()
    assert (seen.session, seen.checkpoints, seen.room, seen.held) == (
        session, (CHECKPOINT,), 6, 1,
    )  # fmt: skip
    assert (seen.info, seen.stats) == ({"host": "here"}, {"rows": 3})
    queue.heartbeat(session, 10, {}, {}, MS)
    assert queue.sessions()[0].room == 6, "the worker has not fetched its grant"
    assert queue.inbox(session, 0.1) == [lease]
    queue.heartbeat(session, 7, {lease.key: (0, 0)}, {}, MS)
    assert queue.sessions()[0].room == 7
    other = LANE._replace(height=512)
    assert queue.lease(session, [other], 10, MS) == []


def test_a_malformed_session_or_farm_name_is_refused(bench: Bench, queue: Queue) -> None:
    with pytest.raises(InvalidInput):
        queue.register("short", "w", [CHECKPOINT], {})
    for name in ("", "Farm", "a b", "x}", "-x"):
        with pytest.raises(InvalidInput):
            Queue(queue.client, farm=name)


def test_many_leases_of_an_ended_session_go_back_quickly(bench: Bench, queue: Queue) -> None:
    for _ in range(5):
        bench.submit(200)
    session = bench.session()
    for _ in range(5):
        queue.lease(session, None, 10**6, MS, limit=200)
    assert queue.end(session, "drain") == 1000
    assert queue.backlog()[0].tasks == 1000


def test_only_the_holder_can_end_a_lease(bench: Bench, queue: Queue) -> None:
    bench.submit(1)
    holder, stranger = bench.session(), bench.session()
    [lease] = bench.lease(holder)
    assert bench.complete(stranger, lease) == "stale"
    assert queue.fail(stranger, lease, "row", "not mine") is TaskState.LEASED
    assert queue.held(holder) == [lease]


def test_an_earlier_attempt_of_the_same_session_is_stale(bench: Bench, queue: Queue) -> None:
    bench.submit(1)
    session = bench.session()
    [first] = bench.lease(session)
    queue.fail(session, first, "release", "")
    [second] = bench.lease(session)
    assert bench.complete(session, first) == "stale"
    assert queue.fail(session, first, "row", "late") is TaskState.LEASED
    assert queue.held(session) == [second]


def test_progress_moves_with_every_heartbeat_and_ends_with_the_lease(
    bench: Bench, queue: Queue
) -> None:
    job = bench.submit(1)
    session = bench.session()
    [lease] = bench.lease(session)
    for done in (1, 3, 3):
        queue.heartbeat(session, 0, {lease.key: (done, 0)}, {}, MS)
        assert queue.status(job, "ann").images.running_done == done
    queue.fail(session, lease, "release", "")
    assert queue.status(job, "ann").images.running_done == 0


def test_a_session_that_drains_is_not_given_the_finalise_task(bench: Bench, queue: Queue) -> None:
    bench.submit(1)
    session = bench.session()
    [lease] = bench.lease(session)
    queue.set_command(session, "drain")
    bench.complete(session, lease)
    assert queue.held(session) == []
    assert [lease.finalise for lease in bench.lease(bench.session())] == [True]


def test_a_session_whose_lease_has_run_out_gets_no_work(bench: Bench, queue: Queue) -> None:
    bench.submit(1)
    session = bench.session()
    bench.advance(31)
    assert bench.lease(session) == []
    queue.heartbeat(session, 10, {}, {}, MS)
    assert len(bench.lease(session)) == 1


def test_a_command_of_a_newer_farm_is_not_obeyed_and_ends_no_worker() -> None:
    for told in ("dance", "drain soon", "share 2 now", ""):
        assert Command.parse(told) is None
    assert Command.parse("drain") == Command("drain")
    assert Command.parse("drain 0") == Command("drain", 0)
