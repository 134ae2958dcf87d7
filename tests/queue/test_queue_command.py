"""``farm queue``: what operators do to the queue itself."""

import json

import pytest
from queue_bench import Bench

from farm.cli.app import run
from farm.local.valkey import ServerProcess
from farm.queue import Queue


@pytest.fixture(autouse=True)
def _the_farm_is_the_tests(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", server.url)
    monkeypatch.delenv("FARM_NAME", raising=False)


def test_a_check_of_a_sound_queue_finds_nothing(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.submit(2)
    assert run(["queue", "check"]) == 0
    assert capsys.readouterr() == ("", "queue: no findings\n")


def test_a_check_names_what_is_wrong_and_repairs_it(
    bench: Bench, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    job = bench.submit(2)
    queue.client.hset(f"{{farm}}:job:{job}", "nq", 7)
    assert run(["queue", "check"]) == 1
    out, err = capsys.readouterr()
    assert out == f"{job}: counter nq is 7; its tasks give 2\n"
    assert err == "queue: 1 finding; farm queue check --repair repairs them\n"
    assert run(["queue", "check", "--repair", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["repaired"] is True
    assert run(["queue", "check"]) == 0


def test_a_weight_is_a_tenants_share(bench: Bench, queue: Queue) -> None:
    job = bench.submit(1, tenant="ann")
    bench.submit(1, tenant="bob")
    assert run(["queue", "weight", "ann", "3"]) == 0
    assert queue.why(job, "ann").lanes[0].share == 0.75


def test_a_weight_out_of_range_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["queue", "weight", "ann", "0"]) != 0
    assert "weight" in capsys.readouterr().err


def test_a_worker_that_is_drained_gets_no_work_until_that_is_undone(
    bench: Bench, queue: Queue
) -> None:
    bench.submit(2)
    session = bench.session()
    [worker] = [found.worker for found in queue.sessions()]
    assert run(["queue", "drain", worker]) == 0
    assert bench.lease(session) == []
    assert run(["queue", "drain", worker, "--undo"]) == 0
    assert len(bench.lease(session)) == 2


def test_a_worker_that_does_not_exist_is_named_with_those_that_do(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.session()
    assert run(["queue", "drain", "nowhere"]) != 0
    assert capsys.readouterr().err == (
        "error[not_found]: unknown worker 'nowhere' (there are: worker-0)\n"
    )
