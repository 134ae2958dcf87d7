"""One task, one job, from submission to its end."""

import pytest
from queue_bench import LANE, MS, Bench

from farm.errors import InvalidInput, NotFound
from farm.job import JobState, Priority, TaskState
from farm.queue import Queue, Verdict


def test_a_job_runs_from_submission_to_done(bench: Bench, queue: Queue) -> None:
    job = bench.submit(2, name="bikes", priority="urgent")
    assert queue.status(job, "ann").state is JobState.QUEUED
    session = bench.session()
    first, second = bench.lease(session)
    assert (first.number, second.number, first.lane) == (0, 1, str(LANE))
    assert first.priority is Priority.URGENT
    assert queue.inbox(session, 0.1) == [first, second]
    assert queue.status(job, "ann").state is JobState.RUNNING
    assert bench.complete(session, first) == "committed"
    assert bench.complete(session, second, failed=0) == "committed"
    [final] = queue.inbox(session, 0.1)
    assert final.finalise
    assert queue.held(session) == [final]
    assert bench.complete(session, final) == "committed"
    status = queue.status(job, "ann")
    assert status.state is JobState.DONE
    assert status.name == "bikes"
    assert status.images.model_dump() == {
        "total": 8, "done": 8, "failed": 0, "expired": 0, "running_done": 0,
    }  # fmt: skip
    assert status.tasks.done == 2
    assert status.started_at is not None
    assert status.ended_at is not None
    assert [(row.position, row.number) for row in queue.finished(job)] == [(1, 0), (2, 1)]
    assert queue.finished(job, after=1)[0].receipt == bench.receipt(second)
    kinds = [event.kind for event in queue.events("0", 10)]
    assert kinds == ["queued", "running", "task", "task", "done"]


def test_a_job_with_more_failed_pictures_than_allowed_fails(bench: Bench, queue: Queue) -> None:
    job = bench.submit(1, max_failed=1)
    session = bench.session()
    [lease] = bench.lease(session)
    bench.complete(session, lease, failed=2)
    [final] = queue.held(session)
    bench.complete(session, final)
    status = queue.status(job, "ann")
    assert status.state is JobState.FAILED
    assert status.reason == "2 of 4 pictures failed; at most 1 were allowed"


def test_another_tenants_job_is_not_found(bench: Bench, queue: Queue) -> None:
    job = bench.submit(1)
    for call in (queue.status, queue.cancel):
        with pytest.raises(NotFound):
            call(job, "bob")
    assert queue.jobs("bob", 10) == []


def test_a_repeated_complete_answers_with_its_receipt(bench: Bench, queue: Queue) -> None:
    bench.submit(1)
    session = bench.session()
    [lease] = bench.lease(session)
    bench.complete(session, lease)
    again = queue.complete(session, lease, bench.receipt(lease))
    assert again == (Verdict.ALREADY, bench.receipt(lease))


def test_a_receipt_must_tell_of_every_picture(bench: Bench, queue: Queue) -> None:
    bench.submit(1)
    session = bench.session()
    [lease] = bench.lease(session)
    wrong = bench.receipt(lease).model_copy(update={"done": 3})
    with pytest.raises(InvalidInput, match="3 pictures; the task has 4"):
        queue.complete(session, lease, wrong)
    assert queue.held(session) == [lease]


def test_failed_by_its_row_is_final(bench: Bench, queue: Queue) -> None:
    job = bench.submit(1)
    session = bench.session()
    [lease] = bench.lease(session)
    assert queue.fail(session, lease, "row", "chunk is unreadable") is TaskState.FAILED
    assert queue.fail(session, lease, "row", "again") is TaskState.FAILED
    assert queue.failures(job) == [(1, 0, 0, 4, "chunk is unreadable")]
    [final] = queue.held(session)
    bench.complete(session, final)
    status = queue.status(job, "ann")
    assert (status.state, status.images.failed) == (JobState.FAILED, 4)


def test_twenty_losses_of_infrastructure_are_enough(bench: Bench, queue: Queue) -> None:
    job = bench.submit(1)
    session = bench.session()
    for loss in range(20):
        [lease] = bench.lease(session)
        state = queue.fail(session, lease, "infra", "no route to the store")
        assert state is (TaskState.FAILED if loss == 19 else TaskState.WAITING)
        queue.heartbeat(session, 1, {}, {}, 10**8)
        bench.advance(61)
        queue.tick()
    assert queue.failures(job)[0].reason == "lost 20 times: no route to the store"


def test_several_aboard_at_a_crash_run_alone_and_only_a_crash_alone_counts(
    bench: Bench, queue: Queue
) -> None:
    job = bench.submit(3, max_failed=100)
    first = bench.session()
    assert len(bench.lease(first)) == 3
    assert queue.end(first, "crash") == 3
    bench.advance(61)
    queue.tick()
    crashes = 0
    for _ in range(10):
        session = bench.session()
        leases = [lease for lease in bench.lease(session) if not lease.finalise]
        if not leases:
            break
        [lease] = leases
        assert lease.alone
        assert bench.lease(session) == [], "nothing else comes aboard"
        if lease.number == 1:
            queue.end(session, "crash")
            crashes += 1
            bench.advance(61)
            queue.tick()
        else:
            bench.complete(session, lease)
    assert crashes == 2
    status = queue.status(job, "ann")
    assert (status.tasks.done, status.tasks.failed) == (2, 1)
    assert "2 times while running alone" in queue.failures(job)[0].reason


def test_an_empty_job_ends_without_pictures(bench: Bench, queue: Queue) -> None:
    header = bench.header()
    queue.submit(header, [], rejected=2)
    session = bench.session()
    [final] = bench.lease(session)
    bench.complete(session, final)
    status = queue.status(header.job, "ann")
    assert (status.state, status.images.total, status.rejected) == (JobState.DONE, 0, 2)


def test_ended_jobs_are_forgotten_after_their_retention(bench: Bench, queue: Queue) -> None:
    header = bench.header(idempotency_key="k")
    queue.submit(header, bench.tasks(1))
    queue.cancel(header.job, "ann")
    bench.advance(31 * 86400)
    queue.tick()
    with pytest.raises(NotFound):
        queue.status(header.job, "ann")
    left = {key for key in queue.client.scan_iter() if header.job in key}
    assert left == set()
    assert queue.submit(bench.header(idempotency_key="k"), bench.tasks(1)).created


def test_jobs_are_listed_newest_first_page_by_page(bench: Bench, queue: Queue) -> None:
    jobs = [bench.submit(1) for _ in range(5)]
    listed = [status.id for status in queue.jobs("ann", 10)]
    assert sorted(listed) == sorted(jobs)
    assert listed == jobs[::-1]
    first = [status.id for status in queue.jobs("ann", 2)]
    rest = [status.id for status in queue.jobs("ann", 10, before=first[-1])]
    assert first + rest == listed


def test_a_listener_hears_what_happens_from_now_on(bench: Bench, queue: Queue) -> None:
    assert queue.last_event() == "0"
    old = bench.submit(1)
    position = queue.last_event()
    assert queue.events(position, 10) == []
    queue.cancel(old, "ann")
    [event] = queue.events(position, 10)
    assert (event.job, event.kind) == (old, "cancelled")


def test_a_finalise_task_goes_to_another_worker_when_the_first_one_ends(
    bench: Bench, queue: Queue
) -> None:
    job = bench.submit(1)
    first = bench.session()
    [lease] = bench.lease(first)
    bench.complete(first, lease)
    [final] = queue.held(first)
    assert queue.fail(first, final, "infra", "store is away").value == "waiting"
    bench.advance(61)
    queue.tick()
    second = bench.session()
    [again] = bench.lease(second)
    assert (again.finalise, again.attempt) == (True, 2)
    assert bench.complete(first, final) == "stale"
    assert bench.complete(second, again) == "committed"
    assert bench.complete(second, again) == "already"
    assert queue.status(job, "ann").state is JobState.DONE


def test_a_job_that_cannot_be_finalised_fails_with_the_reason(bench: Bench, queue: Queue) -> None:
    job = bench.submit(1)
    session = bench.session()
    [lease] = bench.lease(session)
    bench.complete(session, lease)
    queue.fail(session, queue.held(session)[0], "row", "a manifest part is missing")
    status = queue.status(job, "ann")
    assert status.state is JobState.FAILED
    assert status.reason == "could not be finalised: a manifest part is missing"
    assert queue.retry(job, "ann") == 1
    [final] = bench.lease(session)
    bench.complete(session, final)
    assert queue.status(job, "ann").state is JobState.DONE


def test_a_job_with_as_many_failures_as_allowed_is_done(bench: Bench, queue: Queue) -> None:
    job = bench.submit(1, max_failed=2)
    session = bench.session()
    [lease] = bench.lease(session)
    bench.complete(session, lease, failed=2)
    bench.complete(session, queue.held(session)[0])
    status = queue.status(job, "ann")
    assert (status.state, status.images.failed) == (JobState.DONE, 2)


def test_cancelling_an_ended_job_changes_nothing(bench: Bench, queue: Queue) -> None:
    job = bench.submit(1)
    session = bench.session()
    [lease] = bench.lease(session)
    bench.complete(session, lease)
    bench.complete(session, queue.held(session)[0])
    before = queue.status(job, "ann")
    assert queue.cancel(job, "ann") is JobState.DONE
    assert queue.status(job, "ann") == before


def test_many_tasks_are_done_in_one_call_and_each_has_its_own_outcome(
    bench: Bench, queue: Queue
) -> None:
    job, other = bench.submit(3), bench.submit(1)
    session, stranger = bench.session(), bench.session()
    mine = bench.lease(session)
    assert len(mine) == 4
    queue.cancel(other, "ann")
    done = [(lease, bench.receipt(lease)) for lease in (*mine, mine[0])]
    assert [outcome.verdict for outcome in queue.complete_all(stranger, done[:1])] == ["stale"]
    verdicts = [str(outcome.verdict) for outcome in queue.complete_all(session, done)]
    assert verdicts == ["committed"] * 4 + ["already"]
    assert queue.status(job, "ann").tasks.done == 3
    assert [lease.finalise for lease in queue.held(session)] == [True]


def test_one_wrong_receipt_records_none_of_its_call(bench: Bench, queue: Queue) -> None:
    job = bench.submit(2)
    session = bench.session()
    first, second = bench.lease(session)
    wrong = bench.receipt(second).model_copy(update={"done": 3})
    with pytest.raises(InvalidInput, match="accounts for 3 pictures"):
        queue.complete_all(session, [(first, bench.receipt(first)), (second, wrong)])
    assert queue.status(job, "ann").tasks.done == 0
    assert bench.complete(session, first) == "committed"


def test_what_was_made_of_a_cancelled_job_is_kept(bench: Bench, queue: Queue) -> None:
    """Until then a worker has made some of a task's pictures, or all of them."""
    job = bench.submit(3, pictures=10)
    session = bench.session()
    whole, some, none = bench.lease(session)
    queue.heartbeat(session, 0, {some.key: (3, 1)}, {}, MS)
    queue.cancel(job, "ann")
    assert queue.heartbeat(session, 0, {}, {}, MS).cancelled == {whole.key, some.key, none.key}
    with pytest.raises(InvalidInput, match="the task has 10"):
        queue.complete(session, some, bench.receipt(some).model_copy(update={"done": 11}))
    made = bench.receipt(some).model_copy(update={"done": 3, "failed": 1})
    assert queue.complete(session, some, made).verdict is Verdict.COMMITTED
    assert bench.complete(session, whole) == "committed"
    assert queue.complete(session, some, made).verdict is Verdict.ALREADY
    status = queue.status(job, "ann")
    assert (status.state, status.tasks.done, status.tasks.cancelled) == (JobState.CANCELLED, 2, 1)
    assert (status.images.done, status.images.failed) == (13, 1)
    assert [task.receipt.done for task in queue.finished(job)] == [3, 10]
    assert queue.held(session) == []
