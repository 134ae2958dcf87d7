"""A store is damaged on purpose, and ``farm verify`` names and mends it."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fake_worker import BAD_PROMPT, FakeWorker
from harness import INFO, Gateway, until
from picture_key import picture_key

from farm.cli import verify
from farm.cli.app import run
from farm.errors import Conflict, OverQuota, StoreError
from farm.formats.manifest import read_part
from farm.gateway import quotas
from farm.job import Chunk, Format
from farm.sinks.early import store_early
from farm.sinks.protocol import TaskPlace
from farm.store import keys
from farm.verify import repair
from farm_client import Farm, Job
from farm_client.connection import Connection


@pytest.fixture
def farm(gateway: Gateway) -> Iterator[Farm]:
    with Farm(gateway.url) as farm:
        yield farm


@pytest.fixture
def job(farm: Farm, fake_worker: FakeWorker) -> Job:
    job = farm.submit(["a boat", "a bird", "a fish"], seed=1)
    job.wait(20)
    return job


def picture(job: Job, render: int, generation: int = 0) -> str:
    return picture_key(job.id, generation, render, 0, Format.PNG)


def damage(gateway: Gateway, key: str, data: bytes) -> None:
    gateway.store.delete(key)
    gateway.store.put(key, data)


def test_a_whole_job_has_no_differences(job: Job) -> None:
    found = job.verify()
    assert (found.pictures, found.differences, found.left) == (3, (), 0)


def same_size(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("missing", lambda data: None),
        ("wrong-size", lambda data: data + b"x"),
        ("wrong-sha256", same_size),
    ],
)
def test_a_damaged_picture_is_named_and_made_again(
    gateway: Gateway, job: Job, kind: str, change: Callable[[bytes], bytes | None]
) -> None:
    key = picture(job, 1)
    data = gateway.store.get(key)
    gateway.store.delete(key)
    if (changed := change(data)) is not None:
        gateway.store.put(key, changed)
    found = job.verify()
    assert [(one.kind, one.subject) for one in found.differences] == [(kind, key)]
    repaired = job.verify(repair=True)
    assert (repaired.left, repaired.generation) == (0, 1)
    status = job.wait(20)
    assert (status.images.done, status.images.failed) == (3, 0)
    images = {image.render: image for image in job.images()}
    assert {render: image.generation for render, image in images.items()} == {0: 0, 1: 1, 2: 0}
    assert images[1].bytes() == data
    assert job.verify().differences == ()
    assert gateway.queue.check() == []
    (record,) = gateway.store.list(keys.repairs(job.id))
    told = json.loads(gateway.store.get(record.key))
    assert [(one["kind"], one["subject"]) for one in told] == [(kind, key)]


def test_a_retried_picture_that_is_damaged_is_made_a_third_time(
    gateway: Gateway, farm: Farm, fake_worker: FakeWorker
) -> None:
    job = farm.submit(["a boat", BAD_PROMPT], seed=1)
    job.wait(20, check=False)
    fake_worker.healed = True
    job.retry()
    job.wait(20)
    for render, generation in ((0, 0), (1, 1)):
        damage(gateway, picture(job, render, generation), b"x")
    assert job.verify(repair=True).left == 0
    assert job.wait(20).images.done == 2
    assert {image.generation for image in job.images()} == {2}
    assert job.verify().differences == ()
    assert gateway.queue.check() == []


def test_the_newest_part_of_a_repaired_job_is_written_again_too(gateway: Gateway, job: Job) -> None:
    gateway.store.delete(picture(job, 1))
    job.verify(repair=True)
    job.wait(20)
    gateway.store.delete(keys.part(job.id, 1, 0))
    found = job.verify(repair=True)
    assert [one.kind for one in found.differences] == ["part-missing"]
    assert (found.left, found.generation) == (0, 1)
    assert job.verify().differences == ()


@pytest.mark.parametrize("older", [False, True])
def test_a_lost_part_is_written_again_from_the_pictures(
    gateway: Gateway, farm: Farm, fake_worker: FakeWorker, older: bool
) -> None:
    fake_worker.older = older
    job = farm.submit(["a boat", "a bird"], seed=1)
    job.wait(20)
    key = keys.part(job.id, 0, 0)
    data = gateway.store.get(key)
    for damaged, kind in ((None, "part-missing"), (b"x", "part-changed")):
        gateway.store.delete(key)
        if damaged is not None:
            gateway.store.put(key, damaged)
        found = job.verify(repair=True)
        assert [(one.kind, one.subject) for one in found.differences] == [(kind, key)]
        assert found.left == 0
        assert gateway.store.get(key) == data
        assert job.verify().differences == ()


def test_a_part_whose_pictures_are_gone_too_is_left_and_nothing_is_called_an_orphan(
    gateway: Gateway, job: Job
) -> None:
    key = keys.part(job.id, 0, 0)
    gateway.store.delete(key)
    gateway.store.delete(picture(job, 0))
    found = job.verify(repair=True)
    assert ([one.kind for one in found.differences], found.left) == (["part-missing"], 1)
    assert gateway.store.size(picture(job, 1)) is not None


def test_an_orphan_is_removed(gateway: Gateway, job: Job) -> None:
    stray = picture(job, 99)
    gateway.store.put(stray, b"x")
    found = job.verify(repair=True)
    assert [(one.kind, one.subject) for one in found.differences] == [("orphan", stray)]
    assert found.left == 0
    assert gateway.store.size(stray) is None
    assert gateway.store.size(picture(job, 0)) is not None


@pytest.mark.parametrize("end", ["cancelled", "expired"])
def test_what_was_submitted_and_never_made_is_no_orphan(
    gateway: Gateway, farm: Farm, end: str
) -> None:
    """Nor is what was made of it before."""
    prompts = [f"boat {number}" for number in range(3)]
    job = farm.submit(prompts, seed=1, deadline=datetime.now(UTC) + timedelta(seconds=60))
    if end == "cancelled":
        job.cancel()
    else:
        gateway.queue.client.zadd("{test}:deadlines", {job.id: 1})
        worker = FakeWorker(gateway.queue, gateway.store, INFO)
        worker.start()
        job.wait(20, check=False)
        worker.stop()
    before = {entry.key for entry in gateway.store.list(keys.prefix(job.id))}
    found = job.verify(repair=True)
    assert found.differences == ()
    assert {entry.key for entry in gateway.store.list(keys.prefix(job.id))} == before
    assert keys.chunk(job.id, 0) in before
    assert job.status().tasks[end] == 1
    for chunk in [key for key in before if "/chunks/" in key]:
        gateway.store.delete(chunk)
    assert job.verify().differences == (), "nothing lists it, so nothing misses it"


def test_pictures_of_a_cancelled_job_are_listed_fetched_and_verified(
    gateway: Gateway, farm: Farm, tmp_path: Path
) -> None:
    """Those of a task that was done before, and those that its worker had made by then."""
    renders = [{"prompt": "a boat", "width": 8 * size, "height": 64} for size in (8, 16)]
    job = farm.submit_many(renders, seed=1)
    worker = FakeWorker(gateway.queue, gateway.store, INFO)
    gateway.queue.register(worker.session, "fake", [INFO.name], {})
    first, second = gateway.queue.lease(worker.session, None, 100, 10_000)
    worker.do(first)
    job.cancel()
    gateway.queue.heartbeat(worker.session, 0, {}, {}, 10_000)
    worker.do(second)
    gateway.queue.end(worker.session, "drain")
    status = job.status()
    assert (str(status.state), status.images.done, status.tasks["done"]) == ("cancelled", 2, 2)
    assert [image.render for image in job.images()] == [0, 1]
    assert job.fetch(tmp_path / "out").pictures == 2
    assert job.verify(repair=True).differences == ()
    assert gateway.queue.check() == []


def test_a_retry_that_is_cancelled_leaves_nothing_amiss(gateway: Gateway, farm: Farm) -> None:
    job = farm.submit(["a boat", BAD_PROMPT], seed=1)
    worker = FakeWorker(gateway.queue, gateway.store, INFO)
    worker.start()
    job.wait(20, check=False)
    worker.stop()
    gateway.queue.retry(job.id, "local")
    job.cancel()
    images = job.status().images
    assert (images.done, images.failed) == (1, 0)
    assert job.verify().differences == ()


def test_what_a_worker_may_still_list_is_not_removed(gateway: Gateway, farm: Farm) -> None:
    """It stores the pictures of a job that was cancelled before the part that lists them."""
    job = farm.submit("a boat")
    job.cancel()
    gateway.store.put(picture(job, 0), b"x")
    for hours in (0, 1.9):
        ended = datetime.now(UTC) - timedelta(hours=hours)
        gateway.queue.client.hset(f"{{test}}:job:{job.id}", "e", int(ended.timestamp() * 1000))
        assert job.verify(repair=True).left == 1
        assert gateway.store.size(picture(job, 0)) == 1
    ended -= timedelta(hours=0.2)
    gateway.queue.client.hset(f"{{test}}:job:{job.id}", "e", int(ended.timestamp() * 1000))
    assert job.verify(repair=True).left == 0
    assert gateway.store.size(picture(job, 0)) is None


def test_what_readers_are_shown_of_a_cancelled_job_is_not_removed(
    gateway: Gateway, farm: Farm, fake_worker: FakeWorker
) -> None:
    """Its worker was killed before it wrote the part, and after it had told of its pictures."""
    made = farm.submit("a boat")
    made.wait(20)
    [row] = read_part(gateway.store.get(keys.part(made.id, 0, 0)))
    fake_worker.stop()
    job = farm.submit("a boat")
    job.cancel()
    chunk = Chunk.model_validate_json(gateway.store.get(keys.chunk(job.id, 0)))
    for render in (0, 1):
        gateway.store.put(picture(job, render), gateway.store.get(picture(made, 0)))
    early = row._replace(job=job.id, file=picture(job, 0))
    store_early(gateway.store, TaskPlace.of(chunk, 0), 1, [early])
    ended = int((time.time() - 86400) * 1000)
    gateway.queue.client.hset(f"{{test}}:job:{job.id}", "e", ended)
    found = job.verify(repair=True)
    assert [(one.kind, one.subject) for one in found.differences] == [("orphan", picture(job, 1))]
    assert [image.bytes() for image in job.images()] == [gateway.store.get(picture(made, 0))]
    assert job.verify().differences == ()


def test_what_can_be_mended_is_mended_where_pictures_cannot_be_made_again(
    gateway: Gateway, farm: Farm, fake_worker: FakeWorker
) -> None:
    deadline = datetime.now(UTC) + timedelta(seconds=4)
    job = farm.submit(["a boat", "a bird"], deadline=deadline)
    job.wait(20)
    stray = picture(job, 99)
    gateway.store.put(stray, b"x")
    gateway.store.delete(picture(job, 0))
    time.sleep(max((deadline - datetime.now(UTC)).total_seconds(), 0) + 0.1)
    with pytest.raises(Conflict, match="deadline"):
        job.verify(repair=True)
    assert gateway.store.size(stray) is None
    (record,) = gateway.store.list(keys.repairs(job.id))
    assert [one["subject"] for one in json.loads(gateway.store.get(record.key))] == [stray]
    assert job.status().images.done == 2, "nothing is counted as lost that will not be made"


def test_much_that_was_repaired_is_recorded_in_several_objects(
    gateway: Gateway, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "RECORDED", 2)
    strays = [picture(job, 90 + number) for number in range(4)]
    for stray in strays:
        gateway.store.put(stray, b"x")
    gateway.store.delete(picture(job, 0))
    assert job.verify(repair=True).left == 0
    records = [
        json.loads(gateway.store.get(one.key)) for one in gateway.store.list(keys.repairs(job.id))
    ]
    assert sorted(map(len, records)) == [1, 2, 2]
    told = {one["subject"] for record in records for one in record}
    assert told == {*strays, picture(job, 0)}


def test_a_repair_whose_caller_goes_away_is_finished_by_the_next(
    gateway: Gateway, farm: Farm, fake_worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that it goes on after each task, and stops there."""
    monkeypatch.setattr(repair, "SIGN_SECONDS", -1)
    sizes = [{"prompt": "a boat", "width": width} for width in (64, 128, 192)]  # a task each
    job = farm.submit_many(sizes, seed=1)
    job.wait(20)
    made = [image.bytes() for image in job.images()]
    for render in range(3):
        gateway.store.delete(picture(job, render))
    deps = gateway.app_deps
    verifier = repair.Verifier(deps.queue, deps.store, deps.sinks, job.id, "local")
    lines = repair.report(verifier, deps.settings.data, repair=True)
    while job.status().images.done == 3:
        next(lines)
    assert "checked" in next(lines)
    lines.close()
    assert job.status().generation == 0
    assert job.verify(repair=True).generation == 1
    job.wait(20)
    assert [image.bytes() for image in job.images()] == made
    assert job.verify().differences == ()
    assert gateway.queue.check() == []


@pytest.fixture
def go_on(gateway: Gateway, job: Job, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Until it is set, a verification tells one difference and then waits for the store."""
    gateway.store.delete(picture(job, 0))
    go_on = threading.Event()
    read = gateway.store.stream

    def stream(key: str) -> Iterator[bytes]:
        assert go_on.wait(120)
        return read(key)

    monkeypatch.setattr(gateway.store, "stream", stream)
    yield go_on
    go_on.set()


@pytest.mark.parametrize(
    ("runs", "refusal"),
    [(True, "can be verified when it has ended"), (False, "was retried meanwhile")],
)
def test_a_job_that_is_retried_while_it_is_verified_is_not_repaired(
    gateway: Gateway, farm: Farm, fake_worker: FakeWorker, runs: bool, refusal: str
) -> None:
    """Its new pictures would be taken for strays."""
    job = farm.submit(["a boat", BAD_PROMPT], seed=1)
    job.wait(20, check=False)
    stray = picture(job, 99)
    gateway.store.put(stray, b"x")
    deps = gateway.app_deps
    verifier = repair.Verifier(deps.queue, deps.store, deps.sinks, job.id, "local")
    lines = repair.report(verifier, deps.settings.data, repair=True)
    assert next(lines)["difference"]["subject"] == stray
    if runs:
        fake_worker.stop()
    fake_worker.healed = True
    job.retry()
    if not runs:
        job.wait(20)
    with pytest.raises(Conflict, match=refusal):
        list(lines)
    assert gateway.store.size(stray) == 1


def test_nothing_stays_behind_when_the_caller_goes_away(
    gateway: Gateway, job: Job, go_on: threading.Event
) -> None:
    folder = gateway.app_deps.settings.data / "scratch" / "verify"
    with gateway.client() as http, http.stream("GET", f"/v1/jobs/{job.id}/verify") as answer:
        assert "missing" in next(answer.iter_lines())
        assert os.listdir(folder) == []
        assert len(unnamed_files(folder)) == 1
    go_on.set()
    until(lambda: not unnamed_files(folder))


def test_a_tenant_has_half_of_the_verifications_that_run_at_a_time(
    gateway: Gateway, job: Job, go_on: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "MAX_VERIFICATIONS", 4)
    path = f"/v1/jobs/{job.id}/verify"
    with gateway.client() as http, contextlib.ExitStack() as running:
        for method in ("GET", "POST"):
            answer = running.enter_context(http.stream(method, path))
            assert "missing" in next(answer.iter_lines())
        refused = http.get(path)
        assert (refused.status_code, refused.headers["retry-after"].isdigit()) == (429, True)
        assert "2 of your verifications are running" in refused.json()["error"]["message"]
        running.enter_context(gateway.app_deps.quotas.verification("ann"))
        running.enter_context(gateway.app_deps.quotas.verification("bob"))
        with (
            pytest.raises(OverQuota, match="4 verifications are running"),
            gateway.app_deps.quotas.verification("cyd"),
        ):
            pass
    go_on.set()
    with gateway.client() as http:
        until(lambda: http.get(path).status_code == 200)


def unnamed_files(folder: Path) -> list[str]:
    """Those below a folder that this process has open."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(link))
    return [name for name in found if name.startswith(f"{folder}/")]


def test_a_job_that_still_runs_is_not_verified(farm: Farm) -> None:
    job = farm.submit("a boat")
    with pytest.raises(Conflict, match="still queued"):
        job.verify()


def test_the_command_tells_each_difference_and_its_code(
    gateway: Gateway,
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FARM_URL", gateway.url)
    gateway.store.delete(keys.success(job.id))
    assert run(["verify", job.id]) == 1
    told = capsys.readouterr()
    assert told.out == f"missing {keys.success(job.id)}\n"
    assert told.err == (
        f"{job.id}: 3 pictures checked, 1 difference; "
        f"farm verify {job.id} --repair repairs what can be\n"
    )
    gateway.store.delete(picture(job, 0))
    assert run(["verify", job.id, "--repair", "--json"]) == 1  # the last file's generation is over
    found = json.loads(capsys.readouterr().out)
    assert ([one["kind"] for one in found["differences"]], found["left"]) == (["missing"] * 2, 1)
    job.wait(20)
    assert run(["verify", job.id, "--json"]) == 0
    told = capsys.readouterr()
    assert told.err == f"{job.id}: 3 pictures checked, no difference\n"
    assert json.loads(told.out)["differences"] == []


def test_the_json_of_a_comparison_that_fails_half_way_can_be_read(
    gateway: Gateway,
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(_: str) -> Iterator[bytes]:
        raise StoreError("the store is gone")

    monkeypatch.setenv("FARM_URL", gateway.url)
    gateway.store.delete(picture(job, 0))
    monkeypatch.setattr(gateway.store, "stream", refuse)
    assert run(["verify", job.id, "--json"]) == StoreError.exit_code
    told = json.loads(capsys.readouterr().out)
    assert [one["subject"] for one in told["differences"]] == [picture(job, 0)]
    assert (told["error"]["code"], told["error"]["message"]) == ("store", "the store is gone")


def test_the_command_waits_for_its_turn_for_longer_than_the_clients_patience(
    gateway: Gateway,
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    noted = []

    def say_note(text: str) -> None:
        noted.append(text)
        monkeypatch.setattr(quotas, "MAX_VERIFICATIONS", 8)

    monkeypatch.setenv("FARM_URL", gateway.url)
    monkeypatch.setattr(quotas, "MAX_VERIFICATIONS", 0)
    monkeypatch.setattr(Connection, "patience", 0.0)
    monkeypatch.setattr(verify, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(verify, "say_note", say_note)
    assert run(["verify", job.id]) == 0
    assert noted == [
        "0 of your verifications are running, as many as may at a time; waiting",
    ]
    assert "no difference" in capsys.readouterr().err


def test_of_very_many_differences_all_are_told_and_the_first_are_kept(
    gateway: Gateway,
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FARM_URL", gateway.url)
    monkeypatch.setattr("farm_client.job.MAX_DIFFERENCES", 2)
    gateway.store.delete(picture(job, 0))
    strays = [picture(job, 90 + number) for number in range(4)]
    for stray in strays:
        gateway.store.put(stray, b"x")
    found = job.verify()
    assert [one.kind for one in found.differences] == ["missing", "orphan"]
    assert found.kinds == {"missing": 1, "orphan": 4}
    assert run(["verify", job.id, "--json"]) == 1
    told = capsys.readouterr()
    assert "5 differences (missing 1, orphan 4);" in told.err
    shown = json.loads(told.out)
    assert [one["subject"] for one in shown["differences"]] == [picture(job, 0), *strays]
    assert (shown["left"], shown["kinds"]) == (5, {"missing": 1, "orphan": 4})
