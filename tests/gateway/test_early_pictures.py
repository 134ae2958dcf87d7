"""Pictures can be seen while their task runs, and those of a cancelled job stay."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from fake_engine import FakeDone, FakeEngine
from harness import Gateway, until

from farm.formats.picture_file import read_facts
from farm.job import JobState
from farm.store import keys
from farm_client import Farm, Job
from workers import Workers

PICTURES = 200


@pytest.fixture
def farm(gateway: Gateway) -> Iterator[Farm]:
    with Farm(gateway.url) as farm:
        yield farm


class StoppingEngine(FakeEngine):
    """Stands still after so many pictures, until it may go on."""

    def __init__(self, pictures: int) -> None:
        super().__init__(rows=1)
        self.go_on = threading.Event()
        self._pictures = pictures

    def step(self) -> list[FakeDone]:
        if len(self.rendered) >= self._pictures and not self.go_on.wait(0.01):
            return []
        return super().step()


def stopping(workers: Workers, pictures: int) -> StoppingEngine:
    engine = StoppingEngine(pictures)
    workers.start(engine=engine)
    return engine


def submit(gateway: Gateway, farm: Farm, sink: str = "images") -> Job:
    until(gateway.queue.sessions)  # the checkpoint is known by then
    renders = [{"prompt": f"picture {number}"} for number in range(PICTURES)]
    defaults = {"checkpoint": "fake", "num_inference_steps": 1, "guidance_scale": 1}
    return farm.submit_many(
        renders, sink=sink, seed=1, priority="bulk", shard_size=None if sink == "images" else 100,
        defaults=defaults,
    )  # fmt: skip


def early(gateway: Gateway, job: Job) -> list[str]:
    return [entry.key for entry in gateway.store.list(keys.early(job.id))]


def test_pictures_are_seen_and_fetched_while_their_task_runs(
    gateway: Gateway, workers: Workers, farm: Farm, tmp_path: Path
) -> None:
    engine = stopping(workers, 3)
    job = submit(gateway, farm)
    images = job.images()
    for render in range(3):
        image = next(images)
        assert (image.render, image.error) == (render, None)
        assert read_facts(image.bytes()).spec.prompt == f"picture {render}"
    assert gateway.queue.finished(job.id) == []
    fetched = job.fetch(tmp_path / "out", follow=False)
    assert fetched.pictures == 3
    engine.go_on.set()
    rest = [image.render for image in images]
    assert sorted(rest) == list(range(3, PICTURES)), "each comes once"
    assert early(gateway, job) == [], "the manifest says it all"
    assert job.verify().differences == ()


def test_a_reader_of_the_api_sees_every_picture_once_among_images(
    gateway: Gateway, workers: Workers, farm: Farm, http: httpx2.Client
) -> None:
    engine = stopping(workers, 3)
    job = submit(gateway, farm)
    path = f"/v1/jobs/{job.id}/images"
    until(lambda: len(http.get(path).json()["early"]) == 3)
    page = http.get(path).json()
    assert page["images"] == []
    after = http.get(path, params={"after": page["next"]}).json()
    assert (after["images"], after["early"], after["next"]) == ([], [], page["next"])
    engine.go_on.set()
    job.wait(120)
    seen = []
    while (page := http.get(path, params={"after": page["next"]}).json())["images"]:
        assert page["early"] == []
        seen += [image["render"] for image in page["images"]]
    assert sorted(seen) == list(range(PICTURES))


@pytest.mark.parametrize("sink", ["images", "webdataset"])
def test_what_was_made_of_a_cancelled_job_is_listed_and_fetched(
    gateway: Gateway, workers: Workers, farm: Farm, sink: str, tmp_path: Path
) -> None:
    stopping(workers, 120)
    job = submit(gateway, farm, sink)
    until(lambda: job.status().images.finished == 120)
    job.cancel()
    until(lambda: sum(task.receipt.done for task in gateway.queue.finished(job.id)) == 120)
    assert job.status().state is JobState.CANCELLED
    fetched = job.fetch(tmp_path / "out")
    assert (fetched.pictures, fetched.failed) == (120, 0)
    lines = [json.loads(line) for line in fetched.manifest.read_text().splitlines()]
    assert [line["render"] for line in lines] == list(range(120))
    assert early(gateway, job) == []
    assert job.verify().differences == ()
    assert gateway.queue.check() == []


def test_early_pictures_of_a_task_that_begins_again_come_once(
    gateway: Gateway, workers: Workers, farm: Farm
) -> None:
    stopping(workers, 3)
    job = submit(gateway, farm)
    images = job.images()
    assert [next(images).render for _ in range(3)] == [0, 1, 2]
    workers.stop()
    assert early(gateway, job), "left over: the task has not ended"
    workers.start()
    assert sorted(image.render for image in images) == list(range(3, PICTURES))
    until(lambda: early(gateway, job) == [])  # those of the last moment go with their task
