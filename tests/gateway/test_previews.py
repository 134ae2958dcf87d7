"""Pictures on their way: made by a real worker while someone asks, and never otherwise."""

import io
import threading

import httpx2
from fake_engine import FakeEngine
from harness import Gateway, post, until
from PIL import Image

from farm.formats.origin import GENERATED, digital_source_type
from farm.queue import previews
from farm_client import Farm
from workers import Workers

STEPS = 1000  # of 50 ms: nothing here ends by itself
SLOW = {"prompt": "a slow picture", "checkpoint": "fake", "num_inference_steps": STEPS}


def slow_engine() -> FakeEngine:
    return FakeEngine(step_seconds=0.05)


def test_a_running_picture_can_be_seen(gateway: Gateway, workers: Workers) -> None:
    workers.start(engine=slow_engine())
    seen = []
    with Farm(gateway.url) as farm:
        job = farm.submit("a slow picture", checkpoint="fake", num_inference_steps=STEPS)
        for preview in job.previews():  # ends with the job
            seen.append(preview)
            if len(seen) == 2:
                job.cancel()
    first, second = seen[:2]
    assert 0 < first.step < second.step < STEPS
    assert first.steps == STEPS
    with Image.open(io.BytesIO(first.read())) as picture:
        assert (picture.format, picture.size) == ("JPEG", (32, 32))
        assert abs(picture.getpixel((5, 5))[0] - 99) <= 2
    assert digital_source_type(first.read()) == GENERATED


def test_what_is_not_asked_for_is_not_made(
    gateway: Gateway, workers: Workers, http: httpx2.Client
) -> None:
    engine = FakeEngine()
    workers.start(engine=engine)
    job = post(http, {**SLOW, "num_inference_steps": 100}).json()["id"]
    until(lambda: http.get(f"/v1/jobs/{job}").json()["state"] == "done")
    assert engine.previews_made == 0
    assert previews.read(gateway.queue, job) == []
    assert http.get(f"/v1/jobs/{job}/previews").json() == {"previews": [], "state": "done"}


def test_every_picture_of_a_job_has_its_turn(
    gateway: Gateway, workers: Workers, http: httpx2.Client
) -> None:
    workers.start(engine=slow_engine())
    job = post(http, {**SLOW, "num_images": 3}).json()["id"]

    def seen() -> set[int]:
        return {one["image"] for one in http.get(f"/v1/jobs/{job}/previews").json()["previews"]}

    until(lambda: seen() == {0, 1, 2})
    text = http.get(f"/page/jobs/{job}/previews").text
    assert text.count('src="data:image/jpeg;base64,') == 3
    http.post(f"/v1/jobs/{job}/cancel")
    ended = http.get(f"/page/jobs/{job}/previews")
    assert ended.headers["hx-reswap"] == "delete"


def test_a_preview_that_fails_harms_no_picture(
    gateway: Gateway, workers: Workers, http: httpx2.Client
) -> None:
    engine = slow_engine()
    tried = threading.Event()

    def fail(*_: object) -> None:
        tried.set()
        raise RuntimeError("out of memory")

    engine.preview = fail
    workers.start(engine=engine)
    job = post(http, SLOW).json()["id"]
    until(lambda: http.get(f"/v1/jobs/{job}/previews") and tried.is_set())
    engine.step_seconds = 0.0
    until(lambda: http.get(f"/v1/jobs/{job}").json()["state"] == "done")
