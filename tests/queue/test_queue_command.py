"""``farm queue`` and ``farm workers``: what operators do with the queue itself."""

import json
import threading
import time
from pathlib import Path

import pytest
from queue_bench import CHECKPOINT, MS, Bench

from farm.cli.app import run
from farm.local.valkey import ServerProcess
from farm.queue import Command, Queue, placed_workers
from farm.queue.placed_workers import PlacedWorker, WorkerState


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


def test_unfinished_jobs_of_all_tenants_are_listed(
    bench: Bench, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = bench.submit(1, tenant="ann")
    queue.cancel(ended, "ann")
    job = bench.submit(1, tenant="ann")
    paused = bench.submit(2, tenant="bob")
    queue.pause(paused, "bob")
    assert run(["queue", "jobs"]) == 0
    assert capsys.readouterr().out == (
        f"{job}  ann  queued  normal  0/4\n{paused}  bob  paused  normal  0/8\n"
    )
    assert run(["queue", "jobs", "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["tenant"], one["id"]) for one in told] == [("ann", job), ("bob", paused)]


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
    assert run(["workers", "drain", worker, "--no-wait"]) == 0
    assert bench.lease(session) == []
    assert run(["workers", "drain", worker, "--undo"]) == 0
    assert len(bench.lease(session)) == 2


def test_a_drain_returns_when_the_worker_holds_nothing(
    bench: Bench, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.submit(1)
    session = bench.session()
    [lease] = bench.lease(session)

    def finish() -> None:
        until_told = Command("drain", 60)
        while Command.parse(queue.heartbeat(session, 0, {}, {}, MS).command) != until_told:
            time.sleep(0.01)
        queue.fail(session, lease, "release", "it was handed back")

    worker = threading.Thread(target=finish)
    worker.start()
    [name] = [found.worker for found in queue.sessions()]
    assert run(["workers", "drain", name, "--seconds", "60"]) == 0
    worker.join()
    assert capsys.readouterr().err == f"{name}: hold nothing and get no more work\n"
    assert [found.held for found in queue.sessions()] == [0]


@pytest.mark.parametrize(
    "words",
    [["queue", "check"], ["queue", "weight", "ann", "2"], ["workers"], ["doctor", "--rebuild"]],
)
def test_a_server_that_is_away_is_told_by_each_command(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("FARM_DATA", str(tmp_path))
    monkeypatch.setenv("FARM_STORE", str(tmp_path / "store"))
    assert run(words) == 5
    assert "error[unavailable]: Redis does not answer" in capsys.readouterr().err


def test_workers_are_listed_with_those_that_do_not_run(
    bench: Bench, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.submit(1)
    bench.lease(bench.session())
    placed_workers.post(
        queue,
        [PlacedWorker("worker-9", WorkerState.PENDING, "no node of the cluster has 1 GPU", 5)],
    )
    assert run(["workers"]) == 0
    alone = capsys.readouterr().out
    assert run(["workers", "ls"]) == 0
    listed = capsys.readouterr().out
    assert alone == listed
    works, missing = listed.splitlines()
    assert works == f"worker-0  here  works  1 task  {CHECKPOINT}"
    assert missing == "worker-9 is pending for 5 s: no node of the cluster has 1 GPU"
    assert run(["workers", "ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[1])["state"] == "pending"


def test_a_worker_that_does_not_reach_the_store_is_told(
    bench: Bench, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    session = bench.session()
    for seconds, told in ((29, ""), (97, "  what it has drawn waits for the store, for 97 s")):
        queue.heartbeat(session, 0, {}, {"waited": seconds}, 10_000)
        assert run(["workers"]) == 0
        assert capsys.readouterr().out == f"worker-0  here  idle  0 tasks  {CHECKPOINT}{told}\n"


def test_a_worker_that_does_not_exist_is_named_with_those_that_do(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.session()
    assert run(["workers", "drain", "nowhere"]) != 0
    assert capsys.readouterr().err == (
        "error[not_found]: unknown worker 'nowhere' (there are: worker-0)\n"
    )
