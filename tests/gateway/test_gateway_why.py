"""What a job waits for, over HTTP and on the command line."""

import json

import httpx2
import pytest
from fake_worker import FakeWorker
from harness import Gateway

from farm.cli.app import run
from farm.queue import notice
from farm_client import Farm


def test_a_job_without_a_worker_waits_for_one_and_tells_its_place(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FARM_URL", gateway.url)
    with Farm(gateway.url) as farm:
        farm.submit("a boat")
        job = farm.submit("a bird", num_images=3)
        found = job.why()
    assert (found.waits_for, found.workers, found.seconds) == ("worker", 0, None)
    (lane,) = found.lanes
    assert (lane.pictures, lane.position, lane.earlier, lane.share) == (3, 2, 1, 1.0)
    assert run(["why", job.id]) == 0
    told = capsys.readouterr().out
    assert "no worker serves its checkpoint" in told
    assert f"{lane.lane}: 3 pictures ready, number 2 of your jobs, 1 of your own before" in told
    assert "no estimate" in told
    assert run(["why", job.id, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["waits_for"] == "worker"


def test_a_job_that_has_ended_waits_for_nothing(
    gateway: Gateway,
    fake_worker: FakeWorker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FARM_URL", gateway.url)
    with Farm(gateway.url) as farm:
        job = farm.submit("a boat")
        job.wait(20)
    assert run(["why", job.id]) == 0
    assert capsys.readouterr().out == f"{job.id} done: it has ended\n"


def test_why_no_worker_runs_is_told_in_the_schedulers_words(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FARM_URL", gateway.url)
    notice.post(gateway.queue, "ray: no cluster answers at 127.0.0.1:6379; trying again")
    with Farm(gateway.url) as farm:
        job = farm.submit("a boat")
    assert run(["why", job.id]) == 0
    assert "no cluster answers at 127.0.0.1:6379" in capsys.readouterr().out
    ready = httpx2.get(f"{gateway.url}/readyz")
    assert ready.status_code == 503
    assert ready.json()["note"].startswith("ray: no cluster answers")
