"""The scheduler's loop: what it grants, and what it makes of deaths."""

import pytest
from queue_bench import MS, Bench

from farm.errors import Unavailable
from farm.queue import Command, Queue
from farm.scheduler.scheduler import Scheduler


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
    queue.heartbeat(alone, 1000, {}, {}, MS)
    queue.heartbeat(idle, 10, {}, {}, MS)
    bench.submit(1, priority="urgent")
    assert Scheduler(queue, lease_ms=MS).step() == 1
    assert len(queue.held(idle)) == 1
