"""Which failed pictures a retry makes again, and what happens while it is still being queued."""

from datetime import UTC, datetime, timedelta

import pytest
from queue_bench import MS, Bench

from farm.errors import Conflict
from farm.job import JobState, Lease
from farm.queue import Progress, Queue
from farm.queue.messages import FailKind


def many(bench: Bench, tasks: int, **options: object) -> str:
    header = bench.header(**options)
    bench.queue.open(header)
    pieces = range(0, tasks, 100)
    for piece, first in enumerate(pieces):
        drafts = bench.tasks(100, pictures=1, first=first)
        bench.queue.append(header.job, piece, "a" * 64, drafts)
    bench.queue.close(header.job, len(pieces))
    return header.job


def work(bench: Bench, session: str, failed: int = 0) -> int:
    """Do everything there is; returns how many tasks that were."""
    done = 0
    while leases := [*bench.queue.held(session), *bench.lease(session, room=10**6, limit=200)]:
        leases = list({lease.key: lease for lease in leases}.values())
        bench.queue.complete_all(
            session,
            [(one, bench.receipt(one, 0 if one.finalise else failed)) for one in leases],
        )
        done += sum(not lease.finalise for lease in leases)
    return done


def tick(bench: Bench) -> None:
    bench.advance(1)
    bench.queue.tick()


def test_what_fails_again_while_a_retry_is_still_being_queued_waits_for_the_next_one(
    bench: Bench, queue: Queue
) -> None:
    job = many(bench, 300)
    session = bench.session()
    work(bench, session, failed=1)
    queue.retry(job, "ann")
    assert work(bench, session, failed=1) == 200
    for _ in range(4):
        tick(bench)
    assert queue.status(job, "ann").tasks.queued == 100
    assert work(bench, session) == 100
    status = queue.status(job, "ann")
    assert (status.state, status.images.failed, status.tasks.total) == (JobState.FAILED, 200, 600)
    assert queue.retry(job, "ann") == 2
    assert work(bench, session) == 200
    status = queue.status(job, "ann")
    assert (status.state, status.images.done, status.images.failed) == (JobState.DONE, 300, 0)


def test_a_deadline_ends_a_retry_that_is_still_being_queued(bench: Bench, queue: Queue) -> None:
    deadline = datetime.now(UTC) + timedelta(seconds=60)
    job = many(bench, 400, deadline=deadline)
    session = bench.session()
    queue.heartbeat(session, 0, {}, {}, 10**8)
    work(bench, session, failed=1)
    queue.retry(job, "ann")
    bench.advance(61)
    assert bench.lease(session) == []
    for _ in range(3):
        tick(bench)
    assert work(bench, session) == 0
    status = queue.status(job, "ann")
    assert (status.tasks.expired, status.tasks.queued, status.images.failed) == (200, 0, 400)
    assert status.state is JobState.FAILED


def test_a_job_that_ended_in_time_is_not_retried_after_its_deadline(
    bench: Bench, queue: Queue
) -> None:
    job = bench.submit(1, deadline=datetime.now(UTC) + timedelta(seconds=60))
    session = bench.session()
    queue.heartbeat(session, 0, {}, {}, 10**8)
    work(bench, session, failed=1)
    bench.advance(61)
    queue.tick()
    with pytest.raises(Conflict, match="deadline"):
        queue.retry(job, "ann")
    [finished] = queue.finished(job)
    with pytest.raises(Conflict, match="deadline"):
        queue.invalidate(job, "ann", finished, 0)
    assert queue.status(job, "ann").state is JobState.FAILED


def test_what_could_not_be_finalised_in_time_still_can_be(bench: Bench, queue: Queue) -> None:
    job = bench.submit(1, deadline=datetime.now(UTC) + timedelta(seconds=60))
    session = bench.session()
    queue.heartbeat(session, 0, {}, {}, 10**8)
    bench.complete(session, bench.lease(session)[0])
    [final] = queue.held(session)
    queue.fail(session, final, "row", "the store refuses")
    bench.advance(61)
    queue.tick()
    assert queue.status(job, "ann").state is JobState.FAILED
    queue.retry(job, "ann")
    work(bench, session)
    assert queue.status(job, "ann").state is JobState.DONE


def failed_for_each_reason(bench: Bench) -> str:
    """A job of five tasks, of which the first is good."""
    job = bench.submit(5)
    session = bench.session()
    queue = bench.queue
    good, bad, row, crash, infra = bench.lease(session)
    bench.complete(session, good)
    bench.complete(session, bad, failed=2)
    queue.fail(session, row, "row", "the chunk is gone")
    for lease in (crash, infra):
        queue.fail(session, lease, "release", "")
    fail_for_good(bench, crash, "crash", "signal 9")
    fail_for_good(bench, infra, "infra", "the store is away")
    finish(bench)
    assert queue.status(job, "ann").state is JobState.FAILED
    return job


def test_lost_tasks_are_found_behind_tasks_with_failed_pictures(bench: Bench, queue: Queue) -> None:
    """Both stand in one list, and readers go through the first kind page by page."""
    job = queue.open(bench.header()).job
    for piece in range(6):
        queue.append(job, piece, f"{piece:064}", bench.tasks(200, pictures=2, first=200 * piece))
    queue.close(job, 6)
    session = bench.session()
    lost = {3, 1_040, 1_099}
    while leases := [one for one in bench.lease(session, room=10**6) if not one.finalise]:
        for lease in leases:
            if lease.number in lost:
                queue.fail(session, lease, "row", "its chunk is gone")
            else:
                bench.complete(session, lease, failed=1)
    found, after = [], 0
    while page := queue.failures(job, after, limit=2):
        found += [failure.number for failure in page]
        after = page[-1].position
    assert found == sorted(lost)


def fail_for_good(bench: Bench, task: Lease, kind: FailKind, reason: str) -> None:
    while task.number not in {failure.number for failure in bench.queue.failures(task.job)}:
        session = bench.session()
        for lease in bench.lease(session):
            ours = lease.key == task.key
            bench.queue.fail(session, lease, kind if ours else "release", reason)
        bench.queue.end(session, "drain")
        bench.advance(70)
        bench.queue.tick()


def finish(bench: Bench) -> None:
    session = bench.session()
    for lease in bench.lease(session):
        assert lease.finalise
        bench.complete(session, lease)


@pytest.mark.parametrize(
    ("reason", "numbers"),
    [
        (None, {1, 2, 3, 4}),
        ("row", {1, 2}),
        ("crash", {3}),
        ("infra", {4}),
        ("the chunk", {2}),
        ("signal 9", {3}),
        ("store is", {4}),
    ],
)
def test_a_retry_may_be_of_what_failed_for_one_reason(
    bench: Bench, queue: Queue, reason: str | None, numbers: set[int]
) -> None:
    job = failed_for_each_reason(bench)
    assert queue.retry(job, "ann", reason) == 1
    assert queue.retry(job, "ann", reason) == 1, "the reply was lost"
    session = bench.session()
    redone = set()
    while leases := bench.lease(session):
        redone |= {lease.number for lease in leases if not lease.finalise}
        for lease in leases:
            bench.complete(session, lease)
        for lease in queue.held(session):
            bench.complete(session, lease)
    assert redone == numbers
    status = queue.status(job, "ann")
    left = {1: 2, 2: 4, 3: 4, 4: 4}
    assert status.images.failed == sum(left[number] for number in left.keys() - numbers)
    assert {failure.number for failure in queue.failures(job)} == {2, 3, 4} - numbers
    if left.keys() - numbers:
        assert queue.retry(job, "ann") == 2, "the others may be retried later"


def test_a_task_with_too_many_crashing_rows_failed_by_a_crash(bench: Bench, queue: Queue) -> None:
    job = bench.submit(1, pictures=100)
    crashes = 0
    while not queue.failures(job):
        session = bench.session()
        [lease] = bench.lease(session)
        queue.heartbeat(session, 0, {lease.key: Progress(0, 0, crashes // 2)}, {}, MS)
        queue.end(session, "crash")
        bench.advance(70)
        queue.tick()
        crashes += 1
    finish(bench)
    for reason in ("row", "infra"):
        with pytest.raises(Conflict, match=f"failed for the reason {reason}"):
            queue.retry(job, "ann", reason)
    assert queue.retry(job, "ann", "crash") == 1


def test_a_reason_that_nothing_failed_for_is_refused_and_changes_nothing(
    bench: Bench, queue: Queue
) -> None:
    job = failed_for_each_reason(bench)
    with pytest.raises(Conflict, match="failed for the reason no such"):
        queue.retry(job, "ann", "no such")
    status = queue.status(job, "ann")
    assert (status.state, status.generation) == (JobState.FAILED, 0)


def test_a_retry_for_a_reason_goes_through_very_many_failures(bench: Bench, queue: Queue) -> None:
    job = many(bench, 600)
    session = bench.session()
    leases: list[Lease] = []
    while len(leases) < 600:
        leases += bench.lease(session, limit=200)
    for lease in leases:
        if lease.number % 100 == 0:
            queue.fail(session, lease, "row", "the chunk is gone")
        else:
            bench.complete(session, lease, failed=1)
    work(bench, session)
    queue.retry(job, "ann", "the chunk")
    for _ in range(3):
        tick(bench)
    assert work(bench, session) == 6
    status = queue.status(job, "ann")
    assert (status.state, status.images.done, status.images.failed) == (JobState.FAILED, 6, 594)
    queue.retry(job, "ann")
    for _ in range(3):
        tick(bench)
    assert work(bench, session) == 594
