"""One task, one job, from submission to its end."""

from datetime import UTC, datetime, timedelta

import pytest
from queue_bench import CHECKPOINT, LANE, MS, Bench

from farm.errors import Conflict, InvalidInput, JobCancelled, LeaseLost, NotFound
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
        "total": 8, "done": 8, "failed": 0, "running_done": 0,
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


def test_pieces_come_in_any_order_and_each_once(bench: Bench, queue: Queue) -> None:
    header = bench.header()
    assert queue.open(header).created
    assert queue.open(header).created, "the same call again"
    assert queue.append(header.job, 1, "b" * 64, bench.tasks(2, first=2), rejected=3)
    assert not queue.append(header.job, 1, "b" * 64, bench.tasks(2, first=2), rejected=3)
    with pytest.raises(Conflict, match=r"piece 1 .* other content"):
        queue.append(header.job, 1, "c" * 64, bench.tasks(2, first=2))
    with pytest.raises(Conflict, match=r"task 2 .* exists"):
        queue.append(header.job, 0, "a" * 64, bench.tasks(3))
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
    with pytest.raises(Conflict, match="idempotency key"):
        queue.submit(bench.header(idempotency_key="k", fingerprint="0" * 64), bench.tasks(1))
    other = bench.header(tenant="bob", idempotency_key="k")
    assert queue.submit(other, bench.tasks(1)).created, "another tenant's key"
    assert [status.id for status in queue.jobs("ann", 10)] == [first.job]


def test_another_tenants_job_is_not_found(bench: Bench, queue: Queue) -> None:
    job = bench.submit(1)
    for call in (queue.status, queue.cancel):
        with pytest.raises(NotFound):
            call(job, "bob")
    assert queue.jobs("bob", 10) == []


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
    assert bench.complete(session, lease) == "cancelled"
    beat = queue.heartbeat(session, 5, {}, {}, MS)
    assert (beat.held, beat.cancelled) == (set(), set())
    assert queue.backlog() == []
    with pytest.raises(JobCancelled):
        queue.append(job, 1, "a" * 64, bench.tasks(1, first=9))


def test_a_beat_tells_what_was_cancelled(bench: Bench, queue: Queue) -> None:
    keep, drop = bench.submit(1), bench.submit(1)
    session = bench.session()
    first, second = bench.lease(session)
    queue.cancel(drop, "ann")
    beat = queue.heartbeat(session, 5, {}, {}, MS)
    assert first.job == keep
    assert (beat.held, beat.cancelled, beat.command) == ({first.key}, {second.key}, None)


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


def test_a_beat_says_how_long_a_session_lasts_from_then_on(bench: Bench, queue: Queue) -> None:
    """The time a session has until its first beat is long, because a worker may still be loading;
    one that dies after its first beat must not keep its tasks that long."""
    session = bench.session()
    job = bench.submit()
    bench.lease(session)
    queue.heartbeat(session, 0, {}, {}, 5_000)
    bench.advance(6)
    queue.tick()
    assert queue.sessions() == []
    assert queue.status(job, "ann").tasks.leased == 0


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


def test_released_work_is_first_again_and_costs_nothing(bench: Bench, queue: Queue) -> None:
    bench.submit(3)
    session = bench.session()
    for _ in range(50):
        [lease] = bench.lease(session, limit=1)
        assert lease.number == 0
        assert queue.fail(session, lease, "release", "drained") is TaskState.QUEUED
    assert lease.attempt == 50


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


def test_a_deadline_never_lets_work_start_late(bench: Bench, queue: Queue) -> None:
    deadline = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
    job = bench.submit(3, deadline=deadline)
    session = bench.session()
    [lease] = bench.lease(session, limit=1)
    queue.heartbeat(session, 0, {}, {}, 10**6)
    bench.advance(61)
    assert bench.lease(session) == []
    status = queue.status(job, "ann")
    assert (status.tasks.expired, status.tasks.leased, status.images.failed) == (2, 1, 8)
    assert bench.complete(session, lease) == "committed", "what had started goes on"
    [final] = queue.held(session)
    bench.complete(session, final)
    assert queue.status(job, "ann").state is JobState.FAILED


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


def test_small_jobs_carry_their_chunk(bench: Bench, queue: Queue) -> None:
    text = '{"prompt":"ü \\u0000 \U0001f600"}'
    queue.submit(bench.header(), [bench.tasks(1)[0]._replace(inline=text)])
    session = bench.session()
    assert bench.lease(session)[0].inline == text
    assert queue.inbox(session, 0.1)[0].inline == text


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


def test_user_text_is_never_a_part_of_a_key(bench: Bench, queue: Queue) -> None:
    evil = "ev|l}{*:/\n\x1b[31m"
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
        assert "ev" not in key.removeprefix("{farm}:") or "events" in key
        assert "}" not in key.removeprefix("{farm}:")


def test_what_is_no_job_id_never_reaches_redis(queue: Queue) -> None:
    for text in ("", "j0-", "*", "j0-" + "u" * 26, "}{\r\n", "../x"):
        with pytest.raises(InvalidInput, match="is not a job id"):
            queue.status(text, "ann")
        with pytest.raises(InvalidInput):
            queue.finished(text)


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


def test_a_call_takes_two_hundred_tasks_at_most(bench: Bench, queue: Queue) -> None:
    with pytest.raises(InvalidInput, match="at most 200"):
        queue.submit(bench.header(), bench.tasks(201))
    bench.submit(200)
    assert len(queue.lease(bench.session(), None, 10**6, MS, limit=10**6)) == 200


def test_what_is_no_session_or_farm_is_refused(bench: Bench, queue: Queue) -> None:
    with pytest.raises(InvalidInput):
        queue.register("short", "w", [CHECKPOINT], {})
    for name in ("", "Farm", "a b", "x}", "-x"):
        with pytest.raises(InvalidInput):
            Queue(queue.client, farm=name)


def test_two_farms_on_one_server_do_not_see_each_other(bench: Bench, queue: Queue) -> None:
    other = Queue(queue.client, farm="other")
    job = bench.submit(1)
    with pytest.raises(NotFound):
        other.status(job, "ann")
    assert other.backlog() == []
    assert other.sessions() == []


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


def test_progress_moves_with_every_beat_and_ends_with_the_lease(bench: Bench, queue: Queue) -> None:
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


def test_a_job_with_as_many_failures_as_allowed_is_done(bench: Bench, queue: Queue) -> None:
    job = bench.submit(1, max_failed=2)
    session = bench.session()
    [lease] = bench.lease(session)
    bench.complete(session, lease, failed=2)
    bench.complete(session, queue.held(session)[0])
    status = queue.status(job, "ann")
    assert (status.state, status.images.failed) == (JobState.DONE, 2)


def test_what_fails_after_the_deadline_is_not_tried_again(bench: Bench, queue: Queue) -> None:
    deadline = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
    job = bench.submit(1, deadline=deadline)
    session = bench.session()
    [lease] = bench.lease(session)
    queue.heartbeat(session, 0, {}, {}, 10**6)
    bench.advance(61)
    queue.tick()
    assert queue.fail(session, lease, "infra", "store is away") is TaskState.EXPIRED
    assert queue.status(job, "ann").tasks.expired == 1


def test_what_waits_at_its_deadline_expires(bench: Bench, queue: Queue) -> None:
    deadline = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
    job = bench.submit(1, deadline=deadline)
    session = bench.session()
    [lease] = bench.lease(session)
    queue.fail(session, lease, "infra", "store is away")
    bench.advance(61)
    queue.tick()
    bench.advance(61)
    queue.tick()
    status = queue.status(job, "ann")
    assert (status.tasks.expired, status.tasks.queued, status.images.failed) == (1, 0, 4)


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
    assert verdicts == ["committed"] * 3 + ["cancelled", "already"]
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
