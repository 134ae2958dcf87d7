"""What workers are told, and why a cluster does not run them."""

import io
import json
from types import SimpleNamespace
from typing import Any

import pytest

from farm.cli import place_workers
from farm.cli.place_workers import worker_environment
from farm.queue.placed_workers import PlacedWorker, Reason, WorkerState, from_json, to_json
from farm.scheduler.place import Place, why_no_room
from farm.worker_group import WorkerGroup


def test_workers_get_their_own_settings_and_nothing_of_the_gateway() -> None:
    told = {
        "FARM_ROWS": "8",
        "FARM_STORE": "s3://bucket",
        "FARM_NAME": "farm",
        "REDIS_URL": "redis://host",
        "AWS_ACCESS_KEY_ID": "id",
    }
    kept = {
        "FARM_SECRET": "hush",
        "FARM_KEYS": "/keys",
        "FARM_TLS_KEY": "/key",
        "FARM_WORKERS": "3",
        "FARM_RETENTION_DAYS": "7",
        "FARM_PORT": "8400",
        "RAY_ADDRESS": "head:6379",
        "REDIS_URL_OLD": "redis://:password@host",
        "PATH": "/bin",
    }
    assert worker_environment({**told, **kept}) == told


def test_a_scheduler_with_another_password_finds_the_workers_that_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    farms = set()

    def placement(actor: object, address: str, farm: str, *_: object, **given: Any) -> Any:
        farms.add(farm)
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(place_workers, "Placement", placement)
    monkeypatch.setattr(place_workers, "CLOSE_SECONDS", 1e6)  # its timer ends the process
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    for password in ("one", "another"):
        monkeypatch.setenv("REDIS_URL", f"redis://ann:{password}@127.0.0.1:6379/1")
        orders = place_workers._Orders(io.StringIO("close\n"))  # type: ignore[arg-type]
        place_workers._place(io.StringIO(), orders)
    assert len(farms) == 1


@pytest.mark.parametrize("end", [True, False])
def test_a_farm_that_ends_before_it_knows_its_cluster_ends_the_workers_of_an_earlier_life(
    end: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    did = []

    def placement(*_: object, **given: Any) -> SimpleNamespace:
        did.append("connected")
        return SimpleNamespace(close=lambda: did.append("closed"))

    monkeypatch.setattr(place_workers, "Placement", placement)
    monkeypatch.setattr(place_workers, "CLOSE_SECONDS", 1e6)  # its timer ends the process
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:6379")
    told = io.StringIO('want {"worker": 1}\n' + "close\n" * end)
    orders = place_workers._Orders(told)  # type: ignore[arg-type]
    assert orders.ended.wait(60)
    place_workers._place(io.StringIO(), orders)
    assert did == ["connected", "closed"] * end


def test_a_worker_that_is_started_again_while_it_drains_is_asked_again() -> None:
    asked: list[float] = []
    place = Place("worker-0", WorkerGroup("worker", 1, 1), 0.0)
    place.actor = SimpleNamespace(drain=SimpleNamespace(remote=asked.append))
    place.drain(120, 0.0, Reason.FEWER_WANTED, "fewer are wanted")
    place.drain(120, 1.0, Reason.FEWER_WANTED, "fewer are wanted")
    assert asked == [120]
    place.forget()
    place.drain(120, 2.0, Reason.FEWER_WANTED, "fewer are wanted")
    assert asked == [120, 120]
    assert place.ends_by == 122


def test_why_there_is_no_room() -> None:
    gpu, cpu = WorkerGroup("gpu", 1, 1, gpus=1, cpus=0), WorkerGroup("cpu", 1, 1, gpus=0, cpus=2)
    nodes = [{"CPU": 2.0, "memory": 1e9}]
    no_node = Reason.NO_NODE
    assert why_no_room(gpu, nodes) == (no_node, "no node of the cluster has 1 GPU")
    assert why_no_room(cpu, nodes) == (
        Reason.NO_ROOM, "2 CPU must become free on a node of the cluster"
    )  # fmt: skip
    both = WorkerGroup("both", 1, 1, gpus=1, cpus=2)
    told = no_node, "no node of the cluster has 1 GPU and 2 CPU"
    assert why_no_room(both, nodes) == told
    assert why_no_room(both, [{"CPU": 8.0}, {"GPU": 8.0}]) == told


def test_a_workers_state_is_a_line_for_people() -> None:
    worker = PlacedWorker(
        "worker-1", WorkerState.PENDING, "no node has 1 GPU", 12.3, "", Reason.NO_NODE
    )
    assert str(worker) == "worker-1 is pending for 12 s: no node has 1 GPU"
    assert worker.missing
    assert from_json(to_json([worker])) == [worker]
    assert from_json(to_json([worker]).replace("no_node", "of a later version")) == [
        worker._replace(reason=Reason.OTHER)
    ]
    assert not PlacedWorker("worker-0", WorkerState.RUNNING).missing


def test_what_a_newer_scheduler_says_of_workers_is_understood_as_far_as_possible() -> None:
    told = [
        {**PlacedWorker("worker-0", WorkerState.RUNNING)._asdict(), "mood": "good"},
        {**PlacedWorker("worker-1", WorkerState.RUNNING)._asdict(), "state": "dancing"},
    ]
    assert from_json(json.dumps(told)) == [PlacedWorker("worker-0", WorkerState.RUNNING)]
