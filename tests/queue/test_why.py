"""What a user hears who asks why a job is not done."""

import pytest
from queue_bench import CHECKPOINT, LANE, MS, Bench

from farm.errors import NotFound
from farm.queue import Queue, WaitsFor

PACES = {"paces": {str(LANE): 100}}


def reason(bench: Bench, job: str) -> WaitsFor:
    return bench.queue.why(job, "ann").waits_for


def test_a_job_that_no_worker_can_serve_waits_for_one(bench: Bench) -> None:
    job = bench.submit(2)
    bench.session(("other/model@r1",))
    assert reason(bench, job) is WaitsFor.WORKER
    assert bench.queue.why(job, "ann").workers == 0
    bench.session()
    assert reason(bench, job) is WaitsFor.ROOM
    assert bench.queue.why(job, "ann").workers == 1


def test_a_job_behind_its_tenants_earlier_ones_waits_for_its_turn(bench: Bench) -> None:
    bench.session()
    bench.submit(3)
    job = bench.submit(2)
    why = bench.queue.why(job, "ann")
    [lane] = why.lanes
    assert why.waits_for is WaitsFor.TURN
    assert (lane.lane, lane.position, lane.earlier) == (LANE, 2, 12)
    assert (lane.tasks, lane.pictures, lane.row_steps) == (2, 8, 12)


def test_work_of_a_higher_class_goes_first(bench: Bench) -> None:
    bench.session()
    bench.submit(1, tenant="bob", priority="urgent")
    job = bench.submit(2)
    why = bench.queue.why(job, "ann")
    assert why.waits_for is WaitsFor.HIGHER
    assert why.lanes[0].higher == 4


def test_the_share_is_the_tenants_weight_among_those_who_wait_in_the_lane(bench: Bench) -> None:
    bench.queue.set_weight("bob", 3)
    bench.submit(1, tenant="bob")
    job = bench.submit(1)
    assert bench.queue.why(job, "ann").lanes[0].share == 0.25


def test_the_estimate_comes_from_the_pace_that_workers_measured(bench: Bench) -> None:
    session = bench.session()
    job = bench.submit(5)  # 20 pictures of 12 row-steps
    assert bench.queue.why(job, "ann").seconds is None
    bench.queue.heartbeat(session, 8, {}, PACES, MS)
    assert bench.queue.why(job, "ann").seconds == pytest.approx(2.4)
    bench.submit(5, tenant="bob")
    assert bench.queue.why(job, "ann").seconds == pytest.approx(4.8)


def test_of_a_job_that_workers_hold_as_a_whole_no_estimate_is_made(
    bench: Bench, queue: Queue
) -> None:
    session = bench.session()
    job = bench.submit(1)
    bench.lease(session)
    queue.heartbeat(session, 8, {}, PACES, MS)
    assert queue.why(job, "ann").seconds is None


def test_each_turn_of_a_jobs_life_has_its_reason(bench: Bench, queue: Queue) -> None:
    session = bench.session()
    job = queue.open(bench.header()).job
    assert reason(bench, job) is WaitsFor.PIECES
    queue.append(job, 0, "a" * 64, bench.tasks(1))
    queue.close(job, 1)
    queue.pause(job, "ann")
    assert reason(bench, job) is WaitsFor.RESUME
    queue.resume(job, "ann")
    [lease] = bench.lease(session)
    assert reason(bench, job) is WaitsFor.NOTHING
    queue.fail(session, lease, "infra", "the device was lost")
    assert reason(bench, job) is WaitsFor.RETRY
    bench.advance(2)
    queue.tick()
    assert reason(bench, job) is WaitsFor.ROOM
    [lease] = bench.lease(session)
    assert bench.complete(session, lease) == "committed"
    assert reason(bench, job) is WaitsFor.FINALISE
    [last] = queue.held(session)
    assert bench.complete(session, last) == "committed"
    assert reason(bench, job) is WaitsFor.NOTHING
    assert queue.why(job, "ann").seconds == 0


def test_what_was_aboard_at_a_crash_waits_for_an_empty_worker(bench: Bench, queue: Queue) -> None:
    session = bench.session((CHECKPOINT,))
    job = bench.submit(2)
    bench.lease(session)
    queue.end(session, "crash")
    bench.advance(3)
    queue.tick()
    bench.session()
    why = queue.why(job, "ann")
    assert (why.waits_for, why.alone) == (WaitsFor.EMPTY_WORKER, 2)


def test_a_stranger_hears_nothing_of_a_job(bench: Bench, queue: Queue) -> None:
    job = bench.submit(1)
    with pytest.raises(NotFound):
        queue.why(job, "eve")
