"""Pictures whose files are gone count as failed, and are made again by a retry."""

from datetime import UTC, datetime, timedelta

import pytest
from queue_bench import Bench

from farm.errors import Conflict, NotFound
from farm.job import JobState
from farm.queue import Finished, Queue


def done_job(bench: Bench, tasks: int = 2, failed: int = 0, **options: object) -> str:
    job = bench.submit(tasks, **options)
    session = bench.session()
    for lease in bench.lease(session):
        bench.complete(session, lease, failed=failed)
    [final] = bench.queue.held(session)
    bench.complete(session, final)
    return job


def retried(bench: Bench) -> list[tuple[int, int]]:
    """Number and pictures of each task that is given out, all of them done in the end."""
    session = bench.session()
    leases = bench.lease(session)
    for lease in leases:
        bench.complete(session, lease)
    for final in bench.queue.held(session):
        bench.complete(session, final)
    return sorted((lease.number, lease.pictures) for lease in leases)


def all_made_by_retry(bench: Bench, job: str, pictures: int) -> None:
    """So many pictures of the only task, which has four, are made again; then none is missing."""
    bench.queue.retry(job, "ann")
    assert retried(bench) == [(0, pictures)]
    status = bench.queue.status(job, "ann")
    assert (status.state, status.images.done, status.images.failed) == (JobState.DONE, 4, 0)


def test_spoiled_pictures_count_as_failed_until_they_are_made_again(
    bench: Bench, queue: Queue
) -> None:
    job = done_job(bench)
    first, second = queue.finished(job)
    assert queue.invalidate(job, "ann", first, 1) == 3
    status = queue.status(job, "ann")
    assert (status.images.done, status.images.failed) == (5, 3)
    spoiled, kept = queue.finished(job)
    assert (spoiled.receipt.done, spoiled.receipt.failed) == (1, 3)
    assert spoiled.receipt.model_copy(update={"done": 4, "failed": 0}) == first.receipt
    assert kept == second
    queue.retry(job, "ann")
    assert retried(bench) == [(first.number, 3)]
    status = queue.status(job, "ann")
    assert (status.state, status.images.done, status.images.failed) == (JobState.DONE, 8, 0)


def test_a_task_that_is_spoiled_twice_is_made_again_once(bench: Bench, queue: Queue) -> None:
    job = done_job(bench)
    task = queue.finished(job)[1]
    assert queue.invalidate(job, "ann", task, 3) == 1
    assert queue.invalidate(job, "ann", task, 3) == 0, "the reply was lost"
    assert queue.invalidate(job, "ann", task, 1) == 2
    queue.retry(job, "ann")
    assert retried(bench) == [(task.number, 3)]


def test_a_task_with_failed_pictures_can_lose_more(bench: Bench, queue: Queue) -> None:
    job = done_job(bench, tasks=1, failed=1, max_failed=4)
    [task] = queue.finished(job)
    with pytest.raises(Conflict, match="has 3 pictures"):
        queue.invalidate(job, "ann", task, 4)
    assert queue.invalidate(job, "ann", task, 2) == 1
    queue.retry(job, "ann")
    assert retried(bench) == [(0, 2)]


def test_a_task_that_has_all_its_pictures_is_not_made_again(bench: Bench, queue: Queue) -> None:
    job = done_job(bench)
    assert queue.invalidate(job, "ann", queue.finished(job)[0], 4) == 0
    with pytest.raises(Conflict, match="no failed pictures"):
        queue.retry(job, "ann")


def test_only_done_tasks_of_an_own_job_that_has_ended_are_spoiled(
    bench: Bench, queue: Queue
) -> None:
    job = done_job(bench)
    task = queue.finished(job)[0]
    with pytest.raises(NotFound):
        queue.invalidate(job, "bob", task, 1)
    with pytest.raises(Conflict, match="has 4 pictures"):
        queue.invalidate(job, "ann", task, 5)
    with pytest.raises(Conflict, match="is not done"):
        queue.invalidate(job, "ann", task._replace(number=9), 1)
    lost = bench.submit(1)
    session = bench.session()
    [lease] = bench.lease(session)
    for left in (0, 4):
        with pytest.raises(Conflict, match="has not ended by itself"):
            queue.invalidate(lost, "ann", Finished(1, 0, 0, bench.receipt(lease)), left)
    queue.fail(session, lease, "row", "the chunk is gone")
    [final] = queue.held(session)
    bench.complete(session, final)
    with pytest.raises(Conflict, match="is not done"):
        queue.invalidate(lost, "ann", Finished(1, 0, 0, bench.receipt(lease)), 0)


def test_a_newer_generation_that_failed_makes_spoiled_pictures_as_well(
    bench: Bench, queue: Queue
) -> None:
    job = done_job(bench, tasks=1, failed=1, max_failed=4)
    [task] = queue.finished(job)
    queue.retry(job, "ann")
    session = bench.session()
    [lease] = bench.lease(session)
    assert queue.fail(session, lease, "row", "the chunk is gone").value == "failed"
    [final] = queue.held(session)
    bench.complete(session, final)
    for _ in range(2):
        queue.invalidate(job, "ann", task, 1)
        status = queue.status(job, "ann")
        assert (status.images.done, status.images.failed) == (1, 3)
    all_made_by_retry(bench, job, 3)


def test_only_the_newest_generation_of_a_task_is_spoiled(bench: Bench, queue: Queue) -> None:
    """Else a retry would make the task twice, under one name."""
    job = done_job(bench, tasks=1, failed=1, max_failed=4)
    [old] = queue.finished(job)
    queue.retry(job, "ann")
    session = bench.session()
    [lease] = bench.lease(session)
    bench.complete(session, lease, failed=1)
    [final] = queue.held(session)
    bench.complete(session, final)
    with pytest.raises(Conflict, match="ran again since"):
        queue.invalidate(job, "ann", old, 0)
    new = queue.finished(job)[1]
    assert queue.invalidate(job, "ann", new, -3) == 3, "three of the first generation are gone"
    status = queue.status(job, "ann")
    assert (status.images.done, status.images.failed) == (0, 4)
    all_made_by_retry(bench, job, 4)


def test_pictures_are_not_spoiled_after_the_deadline(bench: Bench, queue: Queue) -> None:
    job = bench.submit(2, deadline=datetime.now(UTC) + timedelta(seconds=60))
    session = bench.session()
    queue.heartbeat(session, 0, {}, {}, 10**8)
    bench.complete(session, bench.lease(session, limit=1)[0])
    bench.advance(61)
    queue.tick()
    [final] = bench.lease(session)
    bench.complete(session, final)
    with pytest.raises(Conflict, match="deadline"):
        queue.invalidate(job, "ann", queue.finished(job)[0], 0)
