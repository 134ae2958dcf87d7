"""The scheduler's loop: what it grants, and what it makes of deaths."""

import pytest
from queue_bench import CHECKPOINT, LANE, MS, Bench

from farm.errors import Unavailable
from farm.queue import Command, Queue, Told
from farm.scheduler.scheduler import Scheduler
from farm.spec import Lane, Mode


class Certificates:
    """Deaths that a test knows of."""

    def __init__(self) -> None:
        self.dead: list[str] = []

    def deaths(self) -> list[str]:
        told, self.dead = self.dead, []
        return told


def test_a_certified_death_frees_the_tasks_and_blames_none_of_them(
    bench: Bench, queue: Queue
) -> None:
    certificates = Certificates()
    scheduler = Scheduler(queue, lease_ms=MS, placement=certificates)
    bench.submit(3)
    first = bench.session(life="first")
    queue.heartbeat(first, 100, {}, {}, MS)
    assert scheduler.step() == 3
    certificates.dead = ["first"]
    scheduler.step()
    assert [session.session for session in queue.sessions()] == []
    second = bench.session()
    bench.advance(5)
    queue.tick()
    leases = bench.lease(second)
    assert [lease.number for lease in sorted(leases)] == [0, 1, 2]
    assert not any(lease.alone for lease in leases)


def test_a_death_is_told_when_the_server_answers_again(
    bench: Bench, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = Certificates()
    scheduler = Scheduler(queue, lease_ms=MS, placement=certificates)
    bench.session(life="first")
    certificates.dead = ["first"]
    with monkeypatch.context() as away:

        def fail(*_: object) -> int:
            raise Unavailable("the server is away")

        away.setattr(queue, "end", fail)
        with pytest.raises(Unavailable):
            scheduler.step()
    assert len(queue.sessions()) == 1
    scheduler.step()
    assert queue.sessions() == []


def test_a_death_ends_the_session_that_the_worker_began_last(bench: Bench, queue: Queue) -> None:
    certificates = Certificates()
    scheduler = Scheduler(queue, lease_ms=MS, placement=certificates)
    for life in ("first", "first", "second"):
        bench.session(life=life)
    certificates.dead = ["first"]
    scheduler.step()
    assert [session.info["life"] for session in queue.sessions()] == ["second"]


def test_many_deaths_at_once_are_one_look_at_the_sessions(
    bench: Bench, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = Certificates()
    scheduler = Scheduler(queue, lease_ms=MS, placement=certificates)
    lives = [f"life-{number}" for number in range(20)]
    for life in [*lives, "other"]:
        bench.session(life=life)
    certificates.dead = lives
    looks, look = [], queue.sessions
    monkeypatch.setattr(queue, "sessions", lambda: looks.append(1) or look())
    scheduler.step()
    assert len(looks) == 1
    assert [session.info["life"] for session in look()] == ["other"]


def test_tasks_that_were_not_begun_go_to_an_idle_worker(bench: Bench, queue: Queue) -> None:
    bench.submit(5)
    rich, idle = bench.session(), bench.session()
    assert len(bench.lease(rich)) == 5
    queue.heartbeat(rich, 0, {}, {"unbegun": 4}, MS)
    queue.heartbeat(idle, 100, {}, {}, MS)
    scheduler = Scheduler(queue, lease_ms=MS)
    scheduler.step()
    told = queue.heartbeat(rich, 0, {}, {"unbegun": 4}, MS).command
    assert Command.parse(told) == Command("share", 2)
    scheduler.step()  # it is told once, until it has done so
    assert queue.heartbeat(rich, 0, {}, {}, MS).command == told


def test_a_worker_that_an_operator_drains_is_told_nothing_else(bench: Bench, queue: Queue) -> None:
    session = bench.session()
    assert queue.set_command(session, Command("drain"))
    assert not queue.set_command(session, Command("share", 1), instead_of="")
    assert queue.heartbeat(session, 0, {}, {}, MS).command == "drain"
    assert not queue.set_command(session, None, instead_of="share 1")
    assert queue.heartbeat(session, 0, {}, {}, MS).command == "drain"
    assert queue.set_command(session, None, instead_of="drain")
    assert queue.heartbeat(session, 0, {}, {}, MS).command is None


def test_two_schedulers_grant_a_task_once(bench: Bench, queue: Queue) -> None:
    bench.submit(40)
    session = bench.session()
    queue.heartbeat(session, 100, {}, {}, MS)
    schedulers = [Scheduler(queue, lease_ms=MS) for _ in range(2)]
    granted = sum(scheduler.step() for _ in range(3) for scheduler in schedulers)
    assert granted == len(queue.held(session))
    assert queue.check() == []


def test_who_runs_a_suspect_alone_is_not_waited_for(bench: Bench, queue: Queue) -> None:
    """It has room and takes nothing: what was planned for it must go to another worker at once."""
    bench.submit(1)
    crashed = bench.session()
    bench.lease(crashed)
    queue.end(crashed, "crash")
    bench.advance(5)
    queue.tick()
    alone, idle = bench.session(), bench.session()
    queue.heartbeat(alone, 1000, {}, {}, MS)
    assert [lease.alone for lease in bench.lease(alone)] == [True]
    queue.heartbeat(alone, 1000, {}, {"urgent_room": 1000}, MS)
    queue.heartbeat(idle, 10, {}, {"urgent_room": 10}, MS)
    bench.submit(1, priority="urgent")
    assert Scheduler(queue, lease_ms=MS).step() == 1
    assert len(queue.held(idle)) == 1


def test_urgent_pictures_that_were_granted_since_a_heartbeat_take_room(
    bench: Bench, queue: Queue
) -> None:
    session = bench.session()
    scheduler = Scheduler(queue, lease_ms=MS)
    queue.heartbeat(session, 0, {}, {"beat": 1, "urgent_room": 8}, MS)
    for granted in (1, 1, 0):
        bench.submit(1, priority="urgent", pictures=4)
        assert scheduler.step() == granted
    queue.heartbeat(session, 0, {}, {"beat": 2, "urgent_room": 4}, MS)
    assert scheduler.step() == 1


def test_a_session_that_ends_after_it_was_listed_is_granted_nothing(
    bench: Bench, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.submit(1)
    ending, other = bench.session(), bench.session()
    queue.heartbeat(ending, 100, {}, {}, MS)
    rooms = queue.rooms()
    queue.end(ending, "drain")
    scheduler = Scheduler(queue, lease_ms=MS)
    with monkeypatch.context() as before:
        before.setattr(queue, "rooms", lambda: rooms)
        assert scheduler.step() == 0
    queue.heartbeat(other, 100, {}, {}, MS)
    assert scheduler.step() == 1


def test_a_worker_leases_for_itself_only_while_no_scheduler_looks(
    bench: Bench, queue: Queue
) -> None:
    session = bench.session()
    assert queue.heartbeat(session, 100, {}, {}, MS).unplanned
    Scheduler(queue, lease_ms=MS).step()
    assert not queue.heartbeat(session, 100, {}, {}, MS).unplanned
    bench.advance(2)
    assert queue.heartbeat(session, 100, {}, {}, MS).unplanned


def test_a_clock_that_was_set_back_hides_no_absent_scheduler(bench: Bench, queue: Queue) -> None:
    session = bench.session()
    Scheduler(queue, lease_ms=MS).step()
    bench.advance(-3600)
    assert queue.heartbeat(session, 100, {}, {}, MS).unplanned
    Scheduler(queue, lease_ms=MS).step()
    assert not queue.heartbeat(session, 100, {}, {}, MS).unplanned


def test_of_very_many_workers_a_share_leases_at_a_time(bench: Bench, queue: Queue) -> None:
    session = bench.session()
    others, key = {f"{number:032x}": 2**50 for number in range(9999)}, f"{{{queue.farm}}}:sessions"
    queue.client.zadd(key, others)
    asked = sum(queue.heartbeat(session, 100, {}, {}, MS).unplanned for _ in range(300))
    assert asked < 60, "3 are expected: 100 a second of 10,000 sessions"
    queue.client.zrem(key, *others)


def test_a_job_whose_finaliser_was_lost_is_finalised(bench: Bench, queue: Queue) -> None:
    """No worker asks for it, and nothing else is ready."""
    bench.submit(1)
    lost, full = bench.session(), bench.session()
    [lease] = bench.lease(lost)
    bench.complete(lost, lease)
    queue.end(lost, "lost")
    bench.advance(5)
    queue.heartbeat(full, 0, {}, {"urgent_room": 100}, MS)
    scheduler = Scheduler(queue, lease_ms=MS)
    assert scheduler.step() == 1
    assert [lease.finalise for lease in queue.held(full)] == [True]


def lanes_of_twelve_tasks(bench: Bench, queue: Queue) -> list[str]:
    """Of the tasks that a worker which prefers ``LANE`` is given, one after another."""
    session = bench.session()
    scheduler = Scheduler(queue, lease_ms=MS)
    done = []
    for _ in range(12):
        queue.heartbeat(session, 1, {}, {"lanes": [str(LANE)]}, MS)
        assert scheduler.step() == 1
        for lease in queue.held(session):
            bench.complete(session, lease)
            done.append(lease.lane)
    return done


def test_a_tenant_waits_in_no_lane_that_other_workers_do_not_prefer(
    bench: Bench, queue: Queue
) -> None:
    small = Lane(CHECKPOINT, Mode.TEXT2IMG, 128, 128)
    bench.submit(100, tenant="ann")
    bench.submit(3, tenant="bob", lane=small)
    done = lanes_of_twelve_tasks(bench, queue)
    assert done.count(str(small)) == 3


def test_a_worker_gets_the_lanes_that_it_prefers_but_for_one_grant_in_four(
    bench: Bench, queue: Queue
) -> None:
    small = Lane(CHECKPOINT, Mode.TEXT2IMG, 128, 128)
    bench.submit(50, tenant="ann")
    bench.submit(50, tenant="bob", lane=small)
    done = lanes_of_twelve_tasks(bench, queue)
    assert done.count(str(LANE)) >= 9


def test_bulk_work_in_another_lane_gets_its_floor(bench: Bench, queue: Queue) -> None:
    small = Lane(CHECKPOINT, Mode.TEXT2IMG, 128, 128)
    bench.submit(100, priority="normal")
    bench.submit(100, priority="bulk", lane=small)
    session = bench.session()
    scheduler = Scheduler(queue, lease_ms=MS)
    done = []
    for _ in range(40):
        queue.heartbeat(session, 1, {}, {"lanes": [str(LANE)]}, MS)
        assert scheduler.step() == 1
        for lease in queue.held(session):
            bench.complete(session, lease)
            done.append(lease.lane)
    assert 3 <= done.count(str(small)) <= 5


def test_who_plans_sees_what_workers_told(bench: Bench, queue: Queue) -> None:
    session = bench.session(("one@1", CHECKPOINT))
    queue.heartbeat(session, 7, {}, {"beat": 3, "urgent_room": 9, "paces": {"x": 1}}, MS)
    [room] = queue.rooms().sessions
    assert (room.session, room.room, room.held, room.command) == (session, 7, 0, None)
    assert room.checkpoints == {"one@1", CHECKPOINT}
    assert room.told == Told(beat=3, urgent_room=9)


def test_a_worker_of_an_earlier_version_is_planned_for(bench: Bench, queue: Queue) -> None:
    session = bench.session()
    queue.heartbeat(session, 7, {}, {"beat": 3, "urgent_room": 9}, MS)
    queue.client.hdel(f"{{{queue.farm}}}:session:{session}", "told")
    assert queue.rooms().sessions[0].told == Told(beat=3, urgent_room=9)


def test_nothing_is_planned_for_sessions_that_would_get_nothing(bench: Bench, queue: Queue) -> None:
    for session in (bench.session(), bench.session()):
        queue.heartbeat(session, 7, {}, {}, MS)
    assert queue.set_command(session, Command("drain"))
    told = {room.session: room for room in queue.rooms().sessions}
    assert told[session].room == 0
    assert told[session].command == "drain"
    assert sum(room.room for room in told.values()) == 7
