"""Which scheduler places workers, and how many it asks for."""

from collections.abc import Mapping
from datetime import UTC, datetime

import pytest
from queue_bench import LANE, MS, Bench

from farm.errors import Unavailable
from farm.queue import Queue, placed_workers
from farm.queue.placed_workers import PlacedWorker, WorkerState
from farm.scheduler.placer import LEAD_MS, Placer
from farm.worker_group import WorkerGroup


class FakeCluster:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.workers: list[PlacedWorker] = []
        self.wanted: dict[str, int] = {}
        self.asked = 0
        self.closed: list[bool] = []

    def want(self, counts: Mapping[str, int]) -> None:
        self.wanted = dict(counts)

    def deaths(self) -> list[str]:
        self.asked += 1
        return ["a life"]

    def close(self, *, end_workers: bool) -> None:
        self.closed.append(end_workers)


class Placing:
    """A placer whose clock a test moves."""

    def __init__(
        self, queue: Queue, least: int = 1, most: int = 1, *, end_workers: bool = False
    ) -> None:
        self.now = 0.0
        self.cluster = FakeCluster()
        self.placer = Placer(
            queue, self.cluster, [WorkerGroup("worker", least, most)], target_seconds=10,
            shrink_seconds=30, end_workers=end_workers, clock=lambda: self.now,
        )  # fmt: skip

    def look(self, seconds: float = 1.0) -> list[str]:
        self.now += seconds
        return self.placer.deaths()


def test_the_scheduler_that_started_last_places_the_workers(bench: Bench, queue: Queue) -> None:
    first, second = Placing(queue, end_workers=True), Placing(queue, 2, 2)
    assert first.look() == ["a life"]
    began = queue.now_ms()
    while queue.now_ms() == began:
        pass
    assert second.look() == ["a life"]
    assert first.look() == []
    assert first.cluster.closed == [False]
    assert (first.cluster.wanted, second.cluster.wanted) == ({"worker": 1}, {"worker": 2})
    first.placer.close()
    assert first.cluster.closed == [False, False]  # they are not its workers
    bench.advance(LEAD_MS / 1000 + 1)
    assert first.look() == ["a life"]  # the other one has gone


def cut_off(*_: object) -> bool:
    raise Unavailable("Redis does not answer")


def test_a_scheduler_that_is_cut_off_places_workers_until_another_one_may(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    placing = Placing(queue)
    assert placing.look() == ["a life"]
    with monkeypatch.context() as cut:
        cut.setattr(queue, "lead", cut_off)
        assert placing.look(LEAD_MS / 1000) == ["a life"]
        assert placing.look() == []
        assert placing.cluster.closed == [False], "its workers go on"
        placing.cluster.wanted = {}
    assert placing.look() == ["a life"]
    assert placing.cluster.wanted == {"worker": 1}


def test_workers_that_end_with_their_scheduler_do_so_while_the_queue_is_away(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    placing = Placing(queue, end_workers=True)
    placing.look()
    monkeypatch.setattr(queue, "lead", cut_off)
    assert placing.look(2 * LEAD_MS / 1000) == ["a life"]
    placing.placer.close()
    assert placing.cluster.closed == [True]


def test_schedulers_of_the_same_moment_agree(bench: Bench, queue: Queue) -> None:
    assert queue.lead("b", 1000, LEAD_MS)
    assert not queue.lead("a", 1000, LEAD_MS)
    assert queue.lead("b", 1000, LEAD_MS)
    assert queue.lead("c", 1000, LEAD_MS)
    assert not queue.lead("b", 1000, LEAD_MS)


def test_a_group_grows_with_its_work_and_shrinks_after_it(bench: Bench, queue: Queue) -> None:
    placing = Placing(queue, 0, 5)
    placing.look()
    assert placing.cluster.wanted == {"worker": 0}
    bench.submit(20, pictures=10, cost=120)
    placing.look()
    assert placing.cluster.wanted == {"worker": 1}  # nothing has been measured
    session = bench.session()
    measured = {"paces": {str(LANE): 60.0}, "row_steps": {str(LANE): 12.0}}
    queue.heartbeat(session, 0, {}, measured, MS)
    placing.look()
    assert placing.cluster.wanted == {"worker": 4}  # 2400 row-steps at 60 a second in 10 seconds
    for lease in bench.lease(session):
        bench.complete(session, lease)
    for lease in queue.held(session):
        assert lease.finalise
        bench.complete(session, lease)
    placing.look()
    placing.look(29)
    assert placing.cluster.wanted == {"worker": 4}
    placing.look(2)
    assert placing.cluster.wanted == {"worker": 0}


def test_a_job_that_has_only_to_be_finalised_gets_a_worker(bench: Bench, queue: Queue) -> None:
    placing = Placing(queue, 0, 5)
    deadline = datetime.fromtimestamp(queue.now_ms() / 1000 + 60, UTC).isoformat()
    job = bench.submit(1, deadline=deadline)
    bench.advance(61)
    queue.tick()
    assert queue.backlog() == []
    placing.look()
    assert placing.cluster.wanted == {"worker": 1}
    session = bench.session()
    [lease] = bench.lease(session)
    assert (lease.job, lease.finalise) == (job, True)
    bench.complete(session, lease)
    placing.look()
    placing.look(31)
    assert placing.cluster.wanted == {"worker": 0}


def test_the_next_scheduler_keeps_the_workers_that_there_are(bench: Bench, queue: Queue) -> None:
    placed_workers.post(
        queue,
        [
            PlacedWorker("worker-0", WorkerState.RUNNING),
            PlacedWorker("worker-1", WorkerState.PENDING),
            PlacedWorker("worker-2", WorkerState.DRAINING),
            PlacedWorker("other-0", WorkerState.RUNNING),
        ],
    )
    placing = Placing(queue, 1, 5)
    placing.look()
    assert placing.cluster.wanted == {"worker": 2}


def test_a_scheduler_that_leads_again_keeps_the_workers_of_the_one_meanwhile(
    bench: Bench, queue: Queue
) -> None:
    placing = Placing(queue, 1, 5)
    placing.look()
    assert placing.cluster.wanted == {"worker": 1}
    assert queue.lead("another", queue.now_ms() + 1000, LEAD_MS)
    placing.look()
    workers = [PlacedWorker(f"worker-{number}", WorkerState.RUNNING) for number in range(3)]
    placed_workers.post(queue, workers)
    bench.advance(LEAD_MS / 1000 + 1)
    placing.look()
    assert placing.cluster.wanted == {"worker": 3}


def test_what_the_cluster_tells_of_workers_is_told_to_the_farm(queue: Queue) -> None:
    placing = Placing(queue)
    placing.cluster.workers = [PlacedWorker("worker-0", WorkerState.PENDING, "no room", 3.0)]
    placing.look()
    assert placed_workers.read(queue) == placing.cluster.workers
