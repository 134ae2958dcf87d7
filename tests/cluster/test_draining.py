"""Workers that are drained, cut off or share: nothing is lost, nothing finished is made again."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import pytest
from fake_engine import FakeEngine
from fault_proxy import FaultProxy
from test_crash_reporter import Processes
from test_worker import Farm, until

from farm.queue import Command
from farm.scheduler.scheduler import Scheduler
from farm.store import keys
from farm_workers.worker import queue_session
from farm_workers.worker.task_rows import ReadyRows, TaskRows
from farm_workers.worker.worker import Worker

DRAINS = int(os.environ.get("FARM_DRAINS", "3"))


@pytest.fixture
def farm(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Farm]:
    farm = Farm(redis_url, tmp_path / "store", monkeypatch)
    # None of these tests waits for the end of a lease.
    farm.settings = farm.settings.model_copy(update={"lease_ms": 60_000})
    yield farm
    farm.stop()


def stored(farm: Farm, job: str) -> int:
    return len(list(farm.store.list(keys.prefix(job) + "data/")))


def halted(worker: Worker) -> bool:
    return any(task.halted for task in worker._leases.tasks.values())


def rendered(*engines: FakeEngine) -> Counter[tuple[str, int, int]]:
    """How often each picture was finished, by task, render and image."""
    return Counter(
        (task, render, image) for one in engines for (task, render), image in one.rendered
    )


def test_a_drained_worker_hands_back_what_it_has_not_begun_and_finishes_the_rest(
    farm: Farm,
) -> None:
    engine = FakeEngine(rows=4)
    engine.gate.clear()
    farm.start(engine=engine)
    first = farm.submit("a", "b", "c", "d")
    until(lambda: not engine.idle)
    second = farm.submit("e", "f")
    until(lambda: farm.queue.status(second, "local").tasks.leased == 1)
    worker, _, thread = farm.workers[0]
    worker.drain(300)
    until(lambda: farm.queue.status(second, "local").tasks.queued == 1)
    engine.gate.set()
    thread.join(60)
    assert not thread.is_alive()
    farm.workers.clear()
    assert farm.queue.status(first, "local").images.done == 4
    assert farm.queue.status(second, "local").images.running_done == 0
    assert farm.queue.sessions() == []


def test_what_a_drained_worker_had_finished_is_not_rendered_again(farm: Farm) -> None:
    first, second = FakeEngine(rows=1), FakeEngine(rows=4)
    first.pause_after = 5
    farm.start(engine=first)
    job = farm.submit(*(str(number) for number in range(60)))
    until(lambda: not first.gate.is_set())
    worker, _, thread = farm.workers.pop()
    worker.drain(0)
    until(lambda: halted(worker))
    first.gate.set()
    thread.join(60)
    assert not thread.is_alive()
    assert stored(farm, job) == len(first.rendered) < 60
    farm.start("worker-1", second)
    farm.wait(job)
    assert set(rendered(first, second).values()) == {1}
    assert len(farm.rows(job)) == 60


def test_a_task_that_is_handed_back_while_its_first_row_comes_is_rendered_elsewhere_only(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, take = FakeEngine(rows=1), TaskRows.take
    handed_back = threading.Event()

    def take_and_hand_back(rows: TaskRows, most: int) -> ReadyRows:
        ready = take(rows, most)
        if ready.rows and not handed_back.is_set():
            handed_back.set()
            hand_back = farm.workers[0][0]._queue_session._hand_back
            hand_back.stop_unbegun()
            hand_back.release()
        return ready

    monkeypatch.setattr(TaskRows, "take", take_and_hand_back)
    job = farm.submit_renders(
        [{"prompt": "a", "num_inference_steps": 1, "guidance_scale": 0}]  # one step of the engine
    )
    farm.start(engine=engine)
    farm.wait(job)
    assert handed_back.is_set()
    assert set(rendered(engine).values()) == {1}


def test_a_drain_ends_in_time_although_the_queue_does_not_answer(
    farm: Farm, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_session, "STORING_SECONDS", 0.5)
    engine = FakeEngine(rows=1)
    engine.gate.clear()
    with FaultProxy(Path(urlsplit(redis_url).path)) as proxy:
        farm.settings = farm.settings.model_copy(update={"redis_url": f"redis://{proxy.address}"})
        farm.start(engine=engine)
        farm.submit("a")
        until(lambda: not engine.idle)
        worker, _, thread = farm.workers.pop()
        proxy.refuse()
        proxy.drop()
        engine.gate.set()
        until(lambda: worker._leases.ended)
        worker.drain(0)
        thread.join(60)
        assert not thread.is_alive()
        proxy.heal()


def test_an_operators_drain_leaves_an_idle_worker_that_works_again_when_told(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_session, "HEARTBEAT_SECONDS", 0.05)  # each tells of the order again
    engine = FakeEngine(rows=1)
    engine.pause_after = 5
    farm.start(engine=engine)
    job = farm.submit(*(str(number) for number in range(60)))
    until(lambda: not engine.gate.is_set())
    worker = farm.workers[0][0]
    farm.queue.set_command(worker.session, Command("drain", 1))
    until(lambda: halted(worker))
    engine.gate.set()
    until(lambda: not farm.queue.sessions()[0].held)
    assert farm.queue.status(job, "local").tasks.queued == 1
    assert stored(farm, job) == len(engine.rendered) < 60
    farm.queue.set_command(worker.session, None)
    farm.wait(job)
    assert set(rendered(engine).values()) == {1}


def test_an_operators_drain_outlives_the_session(farm: Farm) -> None:
    """A worker that was cut off for longer than its lease begins a new one."""
    farm.start()
    worker = farm.workers[0][0]
    until(lambda: farm.queue.sessions())
    first = worker.session
    farm.queue.set_command(first, Command("drain", 30))
    until(lambda: worker._queue_session._drain)
    farm.queue.end(first, "lost")
    until(lambda: [one.command for one in farm.queue.sessions()] == ["drain"], seconds=20)
    assert worker.session != first
    job = farm.submit("a")
    assert farm.queue.lease(worker.session, None, 10, 60_000) == []
    farm.queue.set_command(worker.session, None)
    farm.wait(job)


def test_an_idle_worker_gets_tasks_that_another_has_not_begun(farm: Farm) -> None:
    busy, idle = FakeEngine(rows=2), FakeEngine(rows=2)
    busy.gate.clear()
    farm.start(engine=busy)
    jobs = [farm.submit("a", "b") for _ in range(3)]
    until(lambda: [one.held for one in farm.queue.sessions()] == [3])
    farm.start("worker-1", idle)
    scheduler = Scheduler(farm.queue, lease_ms=60_000)

    def two_are_done() -> bool:
        scheduler.step()
        return sum(farm.state(job) == "done" for job in jobs) == 2

    until(two_are_done)
    busy.gate.set()
    for job in jobs:
        farm.wait(job)
    assert set(rendered(busy, idle).values()) == {1}


def test_a_worker_that_is_cut_off_stops_rendering_when_its_lease_ends(
    farm: Farm, redis_url: str
) -> None:
    engine = FakeEngine(rows=1, step_seconds=0.05)
    server = urlsplit(redis_url)
    with FaultProxy(Path(server.path)) as proxy:
        farm.settings = farm.settings.model_copy(
            update={"redis_url": f"redis://{proxy.address}", "lease_ms": 3000}
        )
        farm.start(engine=engine)
        job = farm.submit(*(str(number) for number in range(60)))
        until(lambda: len(engine.rendered) >= 2)
        leases = farm.workers[0][0]._leases
        proxy.black_hole()
        until(lambda: leases.expired)
        time.sleep(0.5)  # the step that ran then
        finished = len(engine.rendered)
        assert finished < 60

        def others_may_have_its_task() -> bool:
            farm.queue.tick()
            return not farm.queue.sessions()

        until(others_may_have_its_task)
        assert len(engine.rendered) == finished
        proxy.heal()
        engine.step_seconds = 0
        farm.wait(job)
    assert len(farm.rows(job)) == 60


def test_a_worker_whose_server_does_not_run_renders_on(farm: Farm, redis_url: str) -> None:
    engine = FakeEngine(rows=1)
    engine.gate.clear()
    with FaultProxy(Path(urlsplit(redis_url).path)) as proxy:
        farm.settings = farm.settings.model_copy(
            update={"redis_url": f"redis://{proxy.address}", "lease_ms": 1000}
        )
        farm.start(engine=engine)
        farm.submit(*(str(number) for number in range(30)))
        until(lambda: not engine.idle)
        leases = farm.workers[0][0]._leases
        proxy.refuse()
        proxy.drop()
        until(lambda: time.monotonic() > leases.lease_end and leases.server_away)
        engine.gate.set()
        until(lambda: len(engine.rendered) == 30)
        proxy.heal()


@pytest.mark.slow
def test_drains_under_load_lose_nothing_and_nothing_finished_is_made_again(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes that get SIGTERM; ``make drains`` does it a hundred times."""
    farm = Farm(redis_url, tmp_path / "store", monkeypatch)
    trace = tmp_path / "trace"
    processes, random = Processes(farm, tmp_path), Random(0)
    told = {"FINISHED": str(trace), "FARM_DRAIN_SECONDS": "0.2"}
    jobs = []
    try:
        running = [processes.start(f"worker-{number}", **told) for number in range(2)]
        until(lambda: len(farm.queue.sessions()) == 2, 60)
        for drain in range(DRAINS):
            jobs += [farm.submit(*(f"{drain} {number}" for number in range(40)))]
            begun = len(trace.read_text()) if trace.exists() else 0
            until(lambda: trace.exists() and len(trace.read_text()) > begun, 60)  # noqa: B023
            time.sleep(random.random() * 0.3)
            oldest = running.pop(0)
            oldest.send_signal(signal.SIGTERM)
            until(lambda: oldest.poll() is not None, 60)  # noqa: B023
            assert oldest.returncode == 0
            running += [processes.start(f"worker-{drain + 2}", **told)]
        for job in jobs:
            until(lambda: farm.state(job) == "done", 120)  # noqa: B023
    finally:
        processes.stop()
    finished = Counter(trace.read_text().splitlines())
    assert {job: len(farm.rows(job)) for job in jobs} == dict.fromkeys(jobs, 40)
    assert set(finished.values()) == {1}
    assert len(finished) == 40 * DRAINS
