"""The scheduler's loop: what it grants, and what it makes of deaths."""

import pytest
from queue_bench import MS, Bench

from farm.errors import Unavailable
from farm.queue import Queue
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
    first = bench.session()
    queue.heartbeat(first, 100, {}, {}, MS)
    assert scheduler.step() == 3
    certificates.dead = [first]
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
    session = bench.session()
    certificates.dead = [session]
    with monkeypatch.context() as away:

        def fail(*_: object) -> int:
            raise Unavailable("the server is away")

        away.setattr(queue, "end", fail)
        with pytest.raises(Unavailable):
            scheduler.step()
    assert len(queue.sessions()) == 1
    scheduler.step()
    assert queue.sessions() == []


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
