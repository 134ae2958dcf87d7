"""What a worker keeps of a task that ran before: stored pictures, and the rows that crash."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_engine import INFO, FakeEngine
from test_worker import Farm, until

from farm.errors import InvalidInput
from farm.job import JobState
from farm.spec import RenderRequest, Row
from farm.store import keys
from farm_workers.publisher import pipe
from farm_workers.testing.faults import FaultyEngine


@pytest.fixture
def farm(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Farm]:
    farm = Farm(redis_url, tmp_path / "store", monkeypatch)
    yield farm
    farm.stop()


def lives(farm: Farm, job: str, *faults: str) -> None:
    """Workers that crash, one after the other, until the job has ended."""
    farm.settings = farm.settings.model_copy(update={"faults": faults})
    for life in range(12):
        farm.start(f"worker-{life}")
        thread = farm.workers[-1][2]
        until(lambda: not thread.is_alive() or farm.state(job) in ENDED)  # noqa: B023
        if thread.is_alive():
            return
        farm.workers.pop()


ENDED = (JobState.DONE, JobState.FAILED)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.slow
def test_a_row_that_crashes_its_worker_fails_alone(farm: Farm) -> None:
    job = farm.submit(*"abcd", "a bad one", *"efgh", max_failed=1)
    lives(farm, job, "sticky:bad")
    rows = farm.rows(job)
    assert farm.state(job) is JobState.DONE
    assert [row.render for row in rows if row.error is not None] == [4]
    assert "crashed its worker" in str(rows[4].failure)


def test_a_row_that_does_not_fit_fails_alone(farm: Farm) -> None:
    job = farm.submit(*"abc", "a bad one", *"def", max_failed=1)
    lives(farm, job, "oom:bad")
    assert [row.render for row in farm.rows(job) if row.error is not None] == [3]


def test_pictures_that_an_earlier_life_stored_are_not_rendered_again(farm: Farm) -> None:
    first = FakeEngine(rows=1)
    first.pause_after = 20
    farm.start(engine=first)
    job = farm.submit(*(str(number) for number in range(60)))

    def stored() -> int:
        return len(list(farm.store.list(keys.prefix(job) + "data/")))

    until(lambda: stored() == 20)
    before = set(first.rendered)
    worker, _, thread = farm.workers.pop()
    worker.stop()
    first.gate.set()
    thread.join(20)
    second = FakeEngine(rows=1)
    farm.start("worker-1", second)
    farm.wait(job)
    assert not {key for key, _ in second.rendered} & {key for key, _ in before}
    assert len(farm.rows(job)) == 60


def test_a_stopped_publisher_process_is_replaced(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe, "SILENT_SECONDS", 2)
    engine = FakeEngine(rows=4)
    engine.gate.clear()
    farm.start(engine=engine)
    publisher = farm.workers[0][0]._publisher
    until(lambda: publisher._ready)
    stopped = publisher.pid
    assert stopped
    job = farm.submit(*(str(number) for number in range(20)))
    until(lambda: not engine.idle)
    os.kill(stopped, signal.SIGSTOP)
    engine.gate.set()
    farm.wait(job)
    assert publisher.pid != stopped


def test_a_render_of_embeds_is_not_struck_by_a_fault() -> None:
    """It has no prompt that could ask for one."""
    request = RenderRequest(embeds="0" * 64, num_inference_steps=1)
    engine = FaultyEngine(FakeEngine(), ["nan:a row"])
    engine.add("key", Row.of(request.resolve(INFO, seed=0), 0))
    [result] = engine.step()
    assert result.error is None


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(InvalidInput, match="FARM_FAULTS"):
        FaultyEngine(FakeEngine(), ["melts:a row"])
