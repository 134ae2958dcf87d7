"""The SDK against a real gateway, synchronous and asynchronous."""

import asyncio
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from fake_worker import BAD_PROMPT, LOST_PROMPT, FakeWorker
from harness import Gateway, Serve, latents, png, write_keys
from PIL import Image

from farm.errors import InvalidInput, JobCancelled, JobFailed, NotAllowed, NotFound, TimedOut
from farm.job import MAX_PIECE_LINES
from farm_client import AllRejected, AsyncFarm, Farm
from farm_client.connection import Connection
from farm_client.fetch import MANIFEST


@pytest.fixture
def farm(gateway: Gateway) -> Iterator[Farm]:
    with Farm(gateway.url) as farm:
        yield farm


def test_a_prompt_becomes_pictures_in_a_folder(
    farm: Farm, fake_worker: FakeWorker, tmp_path: Path
) -> None:
    job = farm.submit("a red bicycle", num_images=4, seed=7, name="bikes")
    status = job.wait(20)
    assert (status.state, status.images.done, status.name) == ("done", 4, "bikes")
    out = tmp_path / "out"
    fetched = job.fetch(out)
    assert (fetched.pictures, fetched.skipped) == (4, 0)
    lines = [json.loads(line) for line in (out / MANIFEST).read_text().splitlines()]
    assert [(line["render"], line["image"], line["seed"]) for line in lines] == [
        (0, 0, 7), (0, 1, 8), (0, 2, 9), (0, 3, 10),
    ]  # fmt: skip
    assert {"file", "sha256", "tokens_sha256", "spec", "error", "notes"} <= lines[0].keys()
    (out / lines[1]["file"]).write_bytes(b"damaged")
    (out / lines[2]["file"]).unlink()
    before = (out / lines[0]["file"]).stat().st_mtime_ns
    again = job.fetch(out)
    assert (again.pictures, again.skipped) == (4, 2)
    assert (out / lines[0]["file"]).stat().st_mtime_ns == before
    assert sorted(path.name for path in out.iterdir()) == [
        *(line["file"] for line in lines), MANIFEST,
    ]  # fmt: skip


FORKS = """
import os, sys
from farm_client import Farm

farm = Farm()
jobs = [farm.submit(f"picture {n}").id for n in range(4)]
children = []
for job in jobs:
    if not (child := os.fork()):
        told = {farm.job(job).status().id for _ in range(50)}
        os._exit(told != {job})
    children.append(child)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


def test_processes_that_are_forked_read_their_own_answers(gateway: Gateway) -> None:
    environment = {**os.environ, "FARM_URL": gateway.url}
    subprocess.run([sys.executable, "-c", FORKS], env=environment, check=True, timeout=120)


def test_farms_jobs_and_refusals_travel_to_other_processes_and_back(
    gateway: Gateway, fake_worker: FakeWorker
) -> None:
    farm = Farm(gateway.url)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        job = pool.submit(farm.submit, "a ring").result(60)
        assert pool.submit(job.wait, 60).result(60).state == "done"
        (image,) = job.images()
        assert pool.submit(image.read).result(60) == image.read()
        with pytest.raises(AllRejected, match="prompt") as refused:
            pool.submit(farm.submit_many, [""]).result(60)
        assert [one.render for one in refused.value.rejected] == [0]
        assert str(pickle.loads(pickle.dumps(AsyncFarm(gateway.url)))) == f"<AsyncFarm {farm.url}>"


def test_a_key_travels_with_its_farm_and_is_not_shown(start: Serve, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys.json", {"secret": {"tenant": "alice"}})
    farm = Farm(start(keys=keys, open=False).url, "secret")
    copy = pickle.loads(pickle.dumps(farm))
    job = copy.submit("a ring")
    assert job.status().id == job.id
    for shown in (farm, job, job.connection, job.connection.address):
        assert "secret" not in repr(shown)


def test_an_async_farm_outlives_its_event_loop(gateway: Gateway) -> None:
    farm = AsyncFarm(gateway.url)

    async def submit() -> str:
        return (await farm.submit("a ring")).id

    assert len({asyncio.run(submit()) for _ in range(3)}) == 3


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("key", [None, "k"])
def test_a_source_that_breaks_leaves_a_job_only_where_a_call_can_continue_it(
    farm: Farm, error: type[BaseException], key: str | None
) -> None:
    def prompts() -> Iterator[str]:
        yield from (f"p{number}" for number in range(2 * MAX_PIECE_LINES))
        raise error("it broke")

    with pytest.raises(error, match="it broke"):
        farm.submit_many(prompts(), idempotency_key=key)
    (job,) = farm.jobs()
    assert job.state == ("cancelled" if key is None else "open")


def test_an_async_submission_that_is_cancelled_leaves_no_job(gateway: Gateway) -> None:
    async def submit() -> str:
        async with AsyncFarm(gateway.url) as farm:

            def prompts() -> Iterator[str]:
                yield from (f"p{number}" for number in range(2 * MAX_PIECE_LINES))
                task.cancel()
                yield "the last"

            task = asyncio.ensure_future(farm.submit_many(prompts()))
            with pytest.raises(asyncio.CancelledError):
                await task
            return await anext(job.state async for job in farm.jobs())

    assert asyncio.run(submit()) == "cancelled"


def test_a_submission_of_which_nothing_is_accepted_says_why(farm: Farm) -> None:
    with pytest.raises(AllRejected, match=r"none of the 2 .*the first: .*promt.*did you mean"):
        farm.submit_many([{"promt": "a ring"}, {"prompt": ""}])


def test_the_same_content_makes_a_job_however_often_it_was_submitted(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm_client.submission.MAX_SAME", 2)
    lines = [f"p{number}" for number in range(MAX_PIECE_LINES + 1)]
    found: list[tuple[str, bool, str]] = []
    jobs = [farm.submit_many(lines, resume=lambda *told: found.append(told)) for _ in range(4)]
    assert len({job.id for job in jobs}) == 4
    assert [there for _, there, _ in found] == [False] * 4


def test_pictures_come_as_they_finish(farm: Farm, fake_worker: FakeWorker, tmp_path: Path) -> None:
    job = farm.submit(["a boat", "a bird"], seed=1)
    images = list(job.images())
    assert sorted((image.render, image.seed) for image in images) == [(0, 1), (1, 1)]
    saved = images[0].save(tmp_path)
    assert saved.read_bytes() == images[0].bytes()
    named = images[0].save(tmp_path / "deep" / "mine.png")
    assert Image.open(named).size == (64, 64)
    assert images[0].spec["prompt"] in ("a boat", "a bird")


def test_the_asynchronous_farm_is_the_same(
    gateway: Gateway, fake_worker: FakeWorker, tmp_path: Path
) -> None:
    async def main() -> None:
        async with AsyncFarm(gateway.url) as farm:
            jobs = await asyncio.gather(*(farm.submit(f"picture {n}") for n in range(5)))
            for job in jobs:
                assert (await job.wait(20)).state == "done"
            images = [image async for image in jobs[0].images()]
            assert (await images[0].bytes()).startswith(b"\x89PNG")
            fetched = await jobs[1].fetch(tmp_path)
            assert fetched.pictures == 1
            many = await farm.submit_many([{"prompt": "a"}, {"prompt": ""}, "b"])
            assert (many.accepted, [one.line for one in many.rejected]) == (2, [2])
            assert [s.state async for s in many.events()][-1] == "done"
            assert len([job async for job in farm.jobs()]) == 6
            assert (await farm.checkpoints())[0].id == "shapes-64"
            assert (await farm.job(jobs[0].id).status()).id == jobs[0].id
            slow = await farm.submit_many(["x"] * 3)
            await slow.cancel()

    asyncio.run(main())


def test_inputs_are_uploaded_in_every_form(farm: Farm, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"  # a PNG: what counts is its content
    path.write_bytes(png(64, 64, colour=(1, 2, 3)))
    mask = Image.new("L", (64, 64), 255)
    (tmp_path / "start.safetensors").write_bytes(latents())
    forms: list[Any] = [path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())]
    for image in forms:
        assert farm.submit("x", image=image).id
    with path.open("rb") as file:
        assert farm.submit("x", image=file, mask_image=mask, strength=0.8).id
    assert farm.submit("x", latents=tmp_path / "start.safetensors").id
    asset = farm.upload(path)
    assert farm.submit("x", image=asset.id).id
    assert farm.submit("x", image=f"sha256:{asset.id}").id
    for wrong in (tmp_path, tmp_path / "nothing.png", 7, b"", io.StringIO("text")):
        with pytest.raises(InvalidInput) as error:
            farm.submit("x", image=wrong)
        assert error.value.field == "image"


def uploaded(gateway: Gateway) -> int:
    with gateway.client() as http:
        lines = http.get("/metrics").text.splitlines()
    return sum(int(float(x.split()[1])) for x in lines if x.startswith("farm_asset_bytes_total"))


def test_the_same_file_is_uploaded_once(farm: Farm, gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(colour=(7, 7, 7)))
    lines = [json.dumps({"prompt": f"p{n}", "image": "a.png"}) for n in range(20)]
    lines[3] = json.dumps({"prompt": "x", "image": "missing.png"})
    (tmp_path / "renders.jsonl").write_text("\n".join(lines))
    before = uploaded(gateway)
    with (tmp_path / "renders.jsonl").open() as file:
        job = farm.submit_many(file)
    assert job.accepted == 19
    assert uploaded(gateway) - before == (tmp_path / "a.png").stat().st_size
    assert [(one.line, one.column) for one in job.rejected] == [(4, 17)]
    assert "missing.png" in str(job.rejected[0])


def test_many_renders_go_in_pieces_and_can_be_sent_again(
    farm: Farm, gateway: Gateway, tmp_path: Path
) -> None:
    path = tmp_path / "many.jsonl"
    with path.open("w") as file:
        for number in range(4300):
            steps = 0 if number == 4100 else 1
            file.write(json.dumps({"prompt": f"p{number}", "num_inference_steps": steps}) + "\n")
    ids = set()
    for _ in range(2):
        with path.open() as file:
            job = farm.submit_many(file, idempotency_key="many", priority="bulk", seed=4)
        ids.add(job.id)
        assert (job.accepted, [one.line for one in job.rejected]) == (4299, [4101])
    assert len(ids) == 1
    status = job.status()
    assert (status.images.total, status.rejected, status.priority) == (4299, 1, "bulk")


def test_renders_that_each_make_a_task_go_in_smaller_pieces(farm: Farm) -> None:
    heavy = {"prompt": "x", "num_images": 64, "num_inference_steps": 100}
    light = {"prompt": "x", "num_inference_steps": 1}
    job = farm.submit_many([heavy] * 210 + [light] * 1900)
    status = job.status()
    assert (job.accepted, status.images.total) == (2110, 210 * 64 + 1900)


def test_a_source_that_breaks_in_the_middle_leaves_nothing_running(farm: Farm) -> None:
    text = "[" + ",".join('{"prompt": "x", "num_inference_steps": 1}' for _ in range(4100)) + ",]"
    with pytest.raises(InvalidInput, match="comma"):
        farm.submit_many(io.StringIO(text))
    assert [job.state for job in farm.jobs()] == ["cancelled"]


def test_defaults_hold_where_a_render_does_not_say_otherwise(
    farm: Farm, fake_worker: FakeWorker
) -> None:
    text = io.StringIO('{"prompt": "a"}\n{"prompt": "b", "num_images": 1}\n')
    job = farm.submit_many(text, defaults={"num_images": 3, "height": 32})
    images = list(job.images())
    assert sorted((one.render, one.image) for one in images) == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert {one.height for one in images} == {32}


@pytest.mark.parametrize("many", [["", " "], [{"promt": "x"}, 7], [{"prompt": "x"}] * 0])
def test_nothing_to_render_is_no_job(farm: Farm, many: list[Any]) -> None:
    with pytest.raises(InvalidInput) as error:
        farm.submit_many(many)
    if many:
        assert isinstance(error.value, AllRejected)
        assert len(error.value.rejected) == len(many)
    assert list(farm.jobs()) == []


@pytest.mark.parametrize("renders", [{"prompt": "a boat"}, [{"prompt": "a boat"}] * 2])
def test_dicts_where_prompts_belong_are_told_where_to_go(farm: Farm, renders: Any) -> None:
    with pytest.raises(InvalidInput, match="submit_many takes renders as dicts"):
        farm.submit(renders)


def test_what_is_wrong_is_raised_with_its_field(farm: Farm) -> None:
    wrong: list[dict[str, Any]] = [
        {"num_inference_steps": 0}, {"priority": "soon"}, {"deadline": "tomorrow"}, {"promt": "x"},
        {"idempotency_key": ""}, {"format": "gif"},
        {"guidance_scale": float("nan")}, {"seed": {1}}, {"prompt_embeds": object()},
    ]  # fmt: skip
    for parameters in wrong:
        with pytest.raises(InvalidInput) as error:
            farm.submit("x", **parameters)
        assert error.value.field in parameters, error.value
    with pytest.raises(InvalidInput):
        farm.submit_many("one prompt")
    with pytest.raises(InvalidInput):
        farm.job("no job")
    with pytest.raises(NotFound):
        farm.job("j0-01m848b6zxgnjbpp0f506dqmht").status()
    with pytest.raises(NotAllowed):
        next(Farm(farm.url, "wrong").jobs())


def test_waiting_ends_as_the_job_does(farm: Farm, gateway: Gateway) -> None:
    job = farm.submit("x")
    with pytest.raises(TimedOut):
        job.wait(0.2)
    job.cancel()
    with pytest.raises(JobCancelled):
        job.wait(5)
    assert job.wait(5, check=False).state == "cancelled"


def test_a_failed_picture_fails_its_job_and_says_why(
    farm: Farm, fake_worker: FakeWorker, tmp_path: Path
) -> None:
    job = farm.submit(["good", BAD_PROMPT])
    with pytest.raises(JobFailed):
        job.wait(20)
    fetched = job.fetch(tmp_path / "out")
    assert (fetched.pictures, fetched.failed) == (1, 1)
    lines = [json.loads(line) for line in fetched.manifest.read_text().splitlines()]
    assert [line["error"] is None for line in lines] == [True, False]
    bad = next(image for image in job.images() if image.error)
    with pytest.raises(Exception, match="not finite"):
        bad.bytes()
    assert farm.submit(["good", BAD_PROMPT], max_failed=1).wait(20).state == "done"


def test_a_folder_that_cannot_be_written_is_said_at_once(
    farm: Farm, fake_worker: FakeWorker, tmp_path: Path
) -> None:
    job = farm.submit("x")
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InvalidInput) as error:
            job.fetch(place)
        assert error.value.field == "output"


def test_a_watcher_survives_a_restart_of_the_gateway(
    start: Serve, gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, away, pause = threading.Event(), threading.Event(), Connection.pause

    async def paused(*arguments: Any) -> None:
        away.set()
        await pause(*arguments)

    monkeypatch.setattr(Connection, "pause", paused)
    first = start()
    port = int(first.url.rsplit(":", 1)[1])
    job = Farm(first.url).submit("x")
    seen = []

    def watch() -> None:
        for status in job.events():
            seen.append(status.state)
            told.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert told.wait(20)
    first.server.should_exit = True
    while any(server.is_serving() for server in first.server.servers):
        time.sleep(0.02)
    assert away.wait(20)
    second = start(port=port)
    second.queue.cancel(job.id, "local")
    watcher.join(20)
    assert not watcher.is_alive()
    assert seen[-1] == "cancelled"


def test_what_a_row_says_besides_comes_back_with_its_pictures(
    farm: Farm, fake_worker: FakeWorker, tmp_path: Path
) -> None:
    rows = [
        {"prompt": "a", "id": "007", "Category": "Abstract", "num_images": 2},
        {"prompt": BAD_PROMPT, "metadata": {"score": 0.5, "tags": ["x", "y"]}, "ok": True},
        {"prompt": LOST_PROMPT, "id": 3},
    ]
    job = farm.submit_many(rows, max_failed=9)
    told = {(one.render, one.image): one.metadata for one in job.images()}
    wanted = {
        (0, 0): {"id": "007", "Category": "Abstract"},
        (0, 1): {"id": "007", "Category": "Abstract"},
        (1, 0): {"score": 0.5, "tags": ["x", "y"], "ok": True},
        (2, 0): {"id": 3},
    }
    assert told == wanted
    fetched = job.fetch(tmp_path / "out")
    lines = [json.loads(line) for line in fetched.manifest.read_text().splitlines()]
    assert {(one["render"], one["image"]): one["metadata"] for one in lines} == wanted


def test_one_render_carries_its_metadata(farm: Farm, fake_worker: FakeWorker) -> None:
    job = farm.submit("a", id=7, metadata={"label": "cat"})
    assert [dict(one.metadata) for one in job.images()] == [{"id": 7, "label": "cat"}]
