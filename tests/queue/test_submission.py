"""How jobs are submitted."""

from datetime import UTC, datetime

import pytest
from queue_bench import LANE, MS, Bench

from farm.errors import Conflict, InvalidInput, NotFound
from farm.job import JobState
from farm.queue import Queue, Restored


def test_pieces_come_in_any_order_and_each_once(bench: Bench, queue: Queue) -> None:
    header = bench.header()
    assert queue.open(header).created
    assert queue.open(header).created, "the same call again"
    assert queue.append(header.job, 1, "b" * 64, bench.tasks(2, first=2), rejected=3)
    assert not queue.append(header.job, 1, "b" * 64, bench.tasks(2, first=2), rejected=3)
    with pytest.raises(Conflict, match=r"piece 1 .* other content"):
        queue.append(header.job, 1, "c" * 64, bench.tasks(2, first=2))
    with pytest.raises(Conflict, match=r"piece 0 .* is missing"):
        queue.close(header.job, 2)
    assert queue.append(header.job, 0, "a" * 64, bench.tasks(2))
    with pytest.raises(Conflict, match="more than 1 pieces"):
        queue.close(header.job, 1)
    with pytest.raises(Conflict, match="more than 0 pieces"):
        queue.close(header.job, 0)
    assert queue.status(header.job, "ann").state is JobState.OPEN
    queue.close(header.job, 2)
    queue.close(header.job, 2)
    with pytest.raises(Conflict, match="closed with 2"):
        queue.close(header.job, 3)
    with pytest.raises(Conflict, match="is closed"):
        queue.append(header.job, 2, "d" * 64, bench.tasks(1, first=9))
    status = queue.status(header.job, "ann")
    assert (status.state, status.tasks.total, status.rejected) == (JobState.QUEUED, 4, 3)


def test_work_starts_before_the_job_is_closed(bench: Bench, queue: Queue) -> None:
    header = bench.header()
    queue.open(header)
    queue.append(header.job, 0, "a" * 64, bench.tasks(1))
    session = bench.session()
    [lease] = bench.lease(session)
    bench.complete(session, lease)
    assert queue.held(session) == []
    queue.close(header.job, 1)
    assert [lease.finalise for lease in bench.lease(session)] == [True]


def test_the_same_idempotency_key_finds_the_same_job(bench: Bench, queue: Queue) -> None:
    first = bench.header(idempotency_key="k")
    assert queue.submit(first, bench.tasks(1)) == (first.job, True)
    assert queue.submit(first, bench.tasks(1)) == (first.job, True), "the reply was lost"
    again = bench.header(idempotency_key="k")
    assert queue.submit(again, bench.tasks(1)) == (first.job, False)
    assert queue.open(again) == (first.job, False)
    assert queue.find_submitted(again) == first.job
    changed = bench.header(idempotency_key="k", fingerprint="0" * 64)
    with pytest.raises(Conflict, match="idempotency key"):
        queue.submit(changed, bench.tasks(1))
    with pytest.raises(Conflict, match="idempotency key"):
        queue.find_submitted(changed)
    other = bench.header(tenant="bob", idempotency_key="k")
    assert queue.find_submitted(other) is None
    assert queue.submit(other, bench.tasks(1)).created, "another tenant's key"
    assert [status.id for status in queue.jobs("ann", 10)] == [first.job]


def test_what_came_in_before_is_known(bench: Bench, queue: Queue) -> None:
    header = bench.header(idempotency_key="k")
    assert not queue.submitted("ann", "k")
    queue.open(header)
    assert queue.appended(header.job, 0, 2) == [False, False]
    queue.append(header.job, 1, "a" * 64, bench.tasks(1))
    assert queue.appended(header.job, 0, 3) == [False, True, False]
    assert not queue.submitted("ann", "k"), "more of it may come"
    queue.append(header.job, 0, "b" * 64, bench.tasks(1, first=1))
    queue.close(header.job, 2)
    assert queue.submitted("ann", "k")
    assert not queue.submitted("ann", "other")
    assert not queue.submitted("bob", "k")


def test_small_jobs_carry_their_chunk(bench: Bench, queue: Queue) -> None:
    text = '{"prompt":"ü \\u0000 \U0001f600"}'
    queue.submit(bench.header(), [bench.tasks(1)[0]._replace(inline=text)])
    session = bench.session()
    assert bench.lease(session)[0].inline == text
    assert queue.inbox(session, 0.1)[0].inline == text


def test_user_text_is_never_a_part_of_a_key(bench: Bench, queue: Queue) -> None:
    evil = "EV|L}{*:/\n\x1b[31m"  # ids and the farm's own words have no capital letters
    lane = LANE._replace(checkpoint=f"{evil}@r1")
    tasks = [bench.tasks(1, lane=lane)[0]._replace(inline=evil)]
    job = queue.submit(bench.header(tenant=evil, idempotency_key="k}*"), tasks).job
    session = bench.session((lane.checkpoint,))
    [lease] = bench.lease(session)
    assert (lease.lane, lease.inline) == (str(lane), evil)
    assert queue.backlog() == []
    queue.fail(session, lease, "row", evil)
    assert queue.failures(job)[0].reason == evil
    assert queue.status(job, evil).tasks.failed == 1
    queue.set_weight(evil, 2)
    for key in queue.client.scan_iter():
        assert key.startswith("{farm}:")
        assert "EV" not in key
        assert "}" not in key.removeprefix("{farm}:")


def test_a_malformed_job_id_never_reaches_redis(queue: Queue) -> None:
    for text in ("", "j0-", "*", "j0-" + "u" * 26, "}{\r\n", "../x"):
        with pytest.raises(InvalidInput, match="is not a job id"):
            queue.status(text, "ann")
        with pytest.raises(InvalidInput):
            queue.finished(text)


def test_pieces_of_a_job_that_was_put_back_bring_only_what_is_missing(
    bench: Bench, queue: Queue
) -> None:
    header, created = bench.header(), datetime.now(UTC)
    queue.restore(header, created, 0)
    there = [Restored(number, 0, LANE, 4, 48) for number in range(3)]
    queue.restore_tasks(header.job, created, 0, there)
    queue.restored(header.job, deadline=None, rejected=0, pieces=[0], closed=False, ended=None)
    for piece in range(2):  # the store does not say which tasks came in which piece
        assert queue.append(header.job, piece, "a" * 64, bench.tasks(2, first=2 * piece))
    queue.close(header.job, 2)
    assert queue.status(header.job, "ann").tasks.total == 4
    assert queue.check(repair=False) == []


def test_a_call_takes_two_hundred_tasks_at_most(bench: Bench, queue: Queue) -> None:
    with pytest.raises(InvalidInput, match="at most 200"):
        queue.submit(bench.header(), bench.tasks(201))
    bench.submit(200)
    assert len(queue.lease(bench.session(), None, 10**6, MS, limit=10**6)) == 200


def test_two_farms_on_one_server_do_not_see_each_other(bench: Bench, queue: Queue) -> None:
    other = Queue(queue.client, farm="other")
    job = bench.submit(1)
    with pytest.raises(NotFound):
        other.status(job, "ann")
    assert other.backlog() == []
    assert other.sessions() == []


def test_a_number_that_comes_twice_in_one_call_is_refused_and_nothing_is_written(
    bench: Bench, queue: Queue
) -> None:
    header = bench.header()
    queue.open(header)
    for numbers in ([0, 0], [3, 4, 3]):
        tasks = [task for number in numbers for task in bench.tasks(1, first=number)]
        with pytest.raises(Conflict, match="exists"):
            queue.append(header.job, 0, "a" * 64, tasks)
        with pytest.raises(Conflict, match="exists"):
            queue.submit(bench.header(), tasks)
    assert queue.status(header.job, "ann").tasks.total == 0
    assert len(queue.jobs("ann")) == 1
