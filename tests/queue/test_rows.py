"""A suspect task runs row by row: a crash blames the row that ran, and the rest is kept."""

from queue_bench import MS, Bench

from farm.job import JobState, Lease, TaskState
from farm.queue import Progress


def crash(bench: Bench, row: int | None) -> Lease:
    """One life of a worker that takes the only task, says which row runs next, and dies."""
    session = bench.session()
    [lease] = bench.lease(session)
    bench.queue.heartbeat(session, 0, {lease.key: Progress(0, 0, row)}, {}, MS)
    bench.queue.end(session, "crash")
    bench.advance(70)
    bench.queue.tick()
    return lease


def suspect(bench: Bench, pictures: int) -> str:
    """A job whose only task was aboard at a crash, so that it runs alone from now on."""
    job = bench.submit(1, pictures=pictures)
    assert not crash(bench, None).alone
    return job


def test_what_a_task_reports_while_it_runs_is_no_longer_running_when_it_is_done(
    bench: Bench,
) -> None:
    job = bench.submit(2, pictures=8)
    session = bench.session()
    first, second = bench.lease(session)
    told = {first.key: Progress(5, 1), second.key: Progress(2, 0)}
    bench.queue.heartbeat(session, 0, told, {}, MS)
    assert bench.queue.status(job, "ann").images.running_done == 7
    bench.complete(session, first, failed=1)
    assert bench.queue.status(job, "ann").images.running_done == 2
    bench.complete(session, second)
    assert bench.queue.status(job, "ann").images.running_done == 0


def test_a_row_that_crashed_twice_alone_is_left_out_and_the_rest_of_its_task_goes_on(
    bench: Bench,
) -> None:
    job = suspect(bench, 8)
    assert [crash(bench, 5).skip for _ in range(2)] == [(), ()]
    session = bench.session()
    [lease] = bench.lease(session)
    assert (lease.alone, lease.skip) == (True, (5,))
    assert bench.queue.held(session) == [lease]
    assert bench.complete(session, lease, failed=1) == "committed"
    assert bench.queue.status(job, "ann").images.done == 7


def test_one_crash_of_a_row_may_be_the_machines(bench: Bench) -> None:
    suspect(bench, 8)
    crash(bench, 5)
    crash(bench, 2)
    assert bench.lease(bench.session())[0].skip == ()


def test_several_bad_rows_of_a_task_are_all_left_out(bench: Bench) -> None:
    suspect(bench, 8)
    for row in (0, 7, 7, 0, 3, 3):
        crash(bench, row)
    assert sorted(bench.lease(bench.session())[0].skip) == [0, 3, 7]


def test_a_crash_outside_any_row_still_counts_against_the_task(bench: Bench) -> None:
    job = suspect(bench, 4)  # by chance nothing else was aboard then: that does not count
    assert crash(bench, None).alone
    crash(bench, 1)
    assert bench.queue.failures(job) == []
    crash(bench, None)
    [failure] = bench.queue.failures(job)
    assert "2 times while running alone" in failure.reason


def test_a_task_whose_rows_all_crash_comes_to_an_end(bench: Bench) -> None:
    job = suspect(bench, 100)
    crashes = 0
    while not bench.queue.failures(job):
        crash(bench, crashes // 2)
        crashes += 1
    assert crashes == 34
    assert "more than 16 of its pictures" in bench.queue.failures(job)[0].reason


def test_a_crash_in_company_blames_no_row(bench: Bench) -> None:
    bench.submit(2)
    session = bench.session()
    first, _ = bench.lease(session)
    bench.queue.heartbeat(session, 0, {first.key: Progress(0, 0, 2)}, {}, MS)
    bench.queue.end(session, "crash")
    bench.advance(70)
    bench.queue.tick()
    for _ in range(2):
        assert crash(bench, None).skip == ()


def test_a_worker_may_tell_of_a_rows_crash_itself(bench: Bench) -> None:
    suspect(bench, 4)
    for _ in range(2):
        session = bench.session()
        [lease] = bench.lease(session)
        bench.queue.heartbeat(session, 0, {lease.key: Progress(1, 0, 1)}, {}, MS)
        assert bench.queue.fail(session, lease, "crash", "a sticky error") is TaskState.WAITING
        bench.advance(70)
        bench.queue.tick()
    assert bench.lease(bench.session())[0].skip == (1,)


def test_crashes_while_a_job_is_finalised_do_not_fail_it(bench: Bench) -> None:
    job = bench.submit(1)
    session = bench.session()
    [lease] = bench.lease(session)
    bench.complete(session, lease)
    for _ in range(3):
        bench.queue.end(session, "crash")
        bench.advance(70)
        bench.queue.tick()
        session = bench.session()
        [final] = bench.lease(session)
        assert final.finalise
    bench.complete(session, final)
    assert bench.queue.status(job, "ann").state is JobState.DONE
