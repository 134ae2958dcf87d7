"""Failed pictures are made again: over HTTP, with the SDK and on the command line."""

import json
from pathlib import Path

import pytest
from fake_worker import BAD_PROMPT, LOST_PROMPT, FakeWorker
from harness import Gateway, ndjson, post_lines

from farm.cli.app import run
from farm.errors import Conflict
from farm.job import MAX_PIECE_LINES
from farm_client import Farm


def test_a_retry_makes_the_failed_pictures_only_and_its_results_count(
    gateway: Gateway, fake_worker: FakeWorker, tmp_path: Path
) -> None:
    with Farm(gateway.url) as farm:
        job = farm.submit(["a boat", BAD_PROMPT, "a bird"], seed=1)
        status = job.wait(20, check=False)
        assert (status.state, status.images.done, status.images.failed) == ("failed", 2, 1)
        before = {image.render: image.sha256 for image in job.images()}
        fake_worker.healed = True
        assert job.retry().generation == 1
        status = job.wait(20)
        assert (status.images.done, status.images.failed) == (3, 0)
        images = {image.render: image for image in job.images()}
        assert {render: image.generation for render, image in images.items()} == {0: 0, 1: 1, 2: 0}
        assert [images[render].sha256 for render in (0, 2)] == [before[0], before[2]]
        fetched = job.fetch(tmp_path)
        assert (fetched.pictures, fetched.failed) == (3, 0)
        lines = [json.loads(line) for line in fetched.manifest.read_text().splitlines()]
        assert [(line["render"], line["generation"]) for line in lines] == [(0, 0), (1, 1), (2, 0)]
        with pytest.raises(Conflict, match="no failed pictures"):
            job.retry()


def test_lines_that_come_again_when_their_job_was_retried_find_it(
    gateway: Gateway, fake_worker: FakeWorker
) -> None:
    prompts = [BAD_PROMPT, *["a boat"] * MAX_PIECE_LINES]
    lines = ndjson([{"prompt": prompt, "seed": 1} for prompt in prompts])
    with gateway.client() as http, Farm(gateway.url) as farm:
        sent = post_lines(http, lines, idempotency_key="retried").json()
        job = farm.job(sent["id"])
        job.wait(60, check=False)
        job.retry()
        job.wait(60, check=False)
        again = post_lines(http, lines, idempotency_key="retried")
        assert (again.status_code, again.json()["id"]) == (200, sent["id"])
        refused = ndjson([{"prompt": ""}] * (MAX_PIECE_LINES + 1))
        job.retry()
        assert post_lines(http, refused, idempotency_key="retried").status_code in (409, 422)
        assert job.wait(60, check=False).state == "failed", "it is not cancelled"


def test_a_picture_that_fails_again_is_listed_once(
    gateway: Gateway, fake_worker: FakeWorker
) -> None:
    with Farm(gateway.url) as farm:
        job = farm.submit(["a boat", BAD_PROMPT], seed=1)
        job.wait(20, check=False)
        for generation in (1, 2):
            job.retry()
            status = job.wait(20, check=False)
            assert (status.images.done, status.images.failed) == (1, 1)
            listed = sorted((image.render, image.generation) for image in job.images())
            assert listed == [(0, 0), (1, generation)]


def test_the_pictures_of_a_task_that_was_lost_are_made_again(
    gateway: Gateway, fake_worker: FakeWorker
) -> None:
    with Farm(gateway.url) as farm:
        job = farm.submit([LOST_PROMPT, "a bird"], seed=1)
        job.wait(20, check=False)
        assert {image.error is None for image in job.images()} == {False}
        fake_worker.healed = True
        job.retry()
        assert job.wait(20).images.done == 2
        assert [image.error for image in job.images()] == [None, None]


def test_a_follower_that_saw_a_picture_fail_keeps_its_good_result(
    gateway: Gateway, fake_worker: FakeWorker, tmp_path: Path
) -> None:
    with Farm(gateway.url) as farm:
        job = farm.submit(["a boat", BAD_PROMPT], seed=1)
        job.wait(20, check=False)
        assert job.fetch(tmp_path).failed == 1
        fake_worker.healed = True
        job.retry()
        job.wait(20)
        again = job.fetch(tmp_path)
        assert (again.pictures, again.skipped, again.failed) == (2, 1, 0)


def test_a_retry_may_be_of_the_tasks_that_failed_for_one_reason(
    gateway: Gateway,
    fake_worker: FakeWorker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FARM_URL", gateway.url)
    with Farm(gateway.url) as farm:
        # Two sizes, so two tasks.
        job = farm.submit_many([{"prompt": BAD_PROMPT}, {"prompt": LOST_PROMPT, "height": 32}])
        assert job.wait(20, check=False).images.failed == 2
        fake_worker.healed = True
        with pytest.raises(Conflict, match="failed for the reason crash"):
            job.retry("crash")
        assert run(["retry", job.id, "--failed", "--reason", "cannot be drawn"]) == 0
        assert capsys.readouterr().err.endswith(": 1 picture to render again\n")
        job.wait(20, check=False)
        assert {image.render: image.error is None for image in job.images()} == {0: False, 1: True}
        assert job.retry("row").generation == 2
        assert job.wait(20).images.done == 2


def test_retry_and_pause_have_commands(
    gateway: Gateway,
    fake_worker: FakeWorker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FARM_URL", gateway.url)

    def cli(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        told = capsys.readouterr()
        return code, told.out, told.err

    _, out, _ = cli("submit", "a boat", BAD_PROMPT, "--wait")
    failed = out.strip()
    _, out, _ = cli("submit", "a bird", "--wait")
    good = out.strip()
    assert cli("ls", "--failed", "-q")[1].split() == [failed]
    fake_worker.healed = True
    code, out, told = cli("retry", failed, "--failed")
    assert (code, out) == (0, "")
    assert told.endswith(": 1 picture to render again\n")
    assert cli("wait", failed)[0] == 0
    assert cli("ls", "--failed", "-q")[1] == ""
    code, _, told = cli("retry", good)
    assert (code, told) == (2, f"error[conflict]: job {good} has no failed pictures\n")
    fake_worker.stop()
    _, out, _ = cli("submit", "a boat")
    waiting = out.strip()
    assert cli("pause", waiting) == (0, "", f"{waiting} paused\n")
    assert "queued, paused: 0 of 1" in cli("status", waiting)[1]
    assert json.loads(cli("resume", waiting, "--json")[1])["paused"] is False
