"""``farm doctor`` on a running gateway, and with each part amiss."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from fake_worker import FakeWorker
from harness import Cli, Gateway

from farm.cli.app import run
from farm.job import JobOptions, job_id
from farm.local import doctor as doctor_module
from farm.local.doctor import Health, Patient, amiss, examine
from farm.queue import notice, placed_workers
from farm.queue.placed_workers import PlacedWorker, WorkerState
from farm.store import keys
from farm.store.local import LocalStore


@pytest.fixture
def patient(gateway: Gateway, redis_url: str, tmp_path: Path) -> Patient:
    return Patient(
        data=tmp_path,
        url=gateway.url,
        redis_url=redis_url,
        store=str(tmp_path / "store"),
        ray_address=gateway.url.removeprefix("http://"),
        checkpoints=(),
    )


def health(patient: Patient, check: str) -> tuple[Health, str]:
    found = [one for one in examine(patient) if one.check == check]
    worst = max(found, key=lambda one: list(Health).index(one.health))
    return worst.health, f"{worst.told} ({worst.hint})"


def test_the_farm_of_a_folder_is_asked_and_its_checkpoints_are_looked_at(
    cli: Cli, gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FARM_URL")
    monkeypatch.setenv("FARM_DATA", str(tmp_path / "another"))
    known = {"url": gateway.url, "checkpoints": ["/nowhere/of-the-farm"]}
    (tmp_path / "client.json").write_text(json.dumps(known))
    told = [
        json.loads(line)
        for line in cli("doctor", "--data", str(tmp_path), "--json").out.splitlines()
    ]
    assert gateway.url in next(one["told"] for one in told if one["check"] == "gateway")
    assert "of-the-farm" in next(one["told"] for one in told if one["check"] == "checkpoints")


def test_every_part_is_looked_at_and_a_part_that_works_is_ok(
    gateway: Gateway, patient: Patient, fake_worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_NAME", gateway.queue.farm)
    checks = dict.fromkeys(one.check for one in examine(patient))
    assert list(checks) == [
        "gateway",
        "server",
        "queue",
        "store",
        "ray",
        "workers",
        "memory",
        "checkpoints",
        "disk",
        "clock",
    ]
    for check in ("gateway", "store", "ray", "workers", "clock"):
        assert health(patient, check)[0] is Health.OK, check


AMISS: list[tuple[str, Callable[[Patient], Patient], str]] = [
    ("gateway", lambda it: it._replace(url="http://127.0.0.1:1"), "farm up"),
    ("gateway", lambda it: it, "would not run"),  # no worker is there
    ("server", lambda it: it._replace(redis_url="redis://:secret@127.0.0.1:1"), "REDIS_URL"),
    (
        "server",
        lambda it: it._replace(redis_url=it.redis_url.replace("//", "//ann:secret@")),
        "refuses the password",
    ),
    ("server", lambda it: it._replace(redis_url="localhost:6379"), "must start with redis://"),
    ("store", lambda it: it._replace(store="ftp://x"), "has no store"),
    ("ray", lambda it: it._replace(ray_address="127.0.0.1:1"), "RAY_ADDRESS"),
    ("checkpoints", lambda it: it._replace(checkpoints=["/nowhere"]), "/nowhere"),
]


@pytest.mark.parametrize(("check", "change", "told"), AMISS)
def test_a_part_that_is_amiss_fails_with_a_hint(
    patient: Patient, check: str, change: Callable[[Patient], Patient], told: str
) -> None:
    found, text = health(change(patient), check)
    assert found is Health.FAIL
    assert told in text
    assert "secret" not in text


def test_the_jobs_of_a_store_that_is_not_listed_are_not_called_known(
    gateway: Gateway, patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_NAME", gateway.queue.farm)
    unlisted = patient._replace(store="s3://farm/here?endpoint_url=http://127.0.0.1:1")
    assert health(unlisted, "queue") == (Health.OK, "its counters are right (None)")


def test_a_server_that_takes_no_writes_fails(
    gateway: Gateway, patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_NAME", "doctored")
    client = gateway.queue.client
    before = client.config_get("maxmemory")["maxmemory"]
    client.config_set("maxmemory", 0)
    client.set("filler", "x" * 64 * 2**20)
    client.config_set("maxmemory", 64 * 2**20)
    try:
        found, text = health(patient, "server")
    finally:
        client.config_set("maxmemory", before)
        client.delete("filler")
    assert found is Health.FAIL
    assert "no memory left" in text


def test_a_store_that_cannot_be_written_to_fails(patient: Patient, tmp_path: Path) -> None:
    """A file where its folder should be; permissions do not stop root."""
    (tmp_path / "file").write_text("")
    found, text = health(patient._replace(store=str(tmp_path / "file" / "store")), "store")
    assert found is Health.FAIL
    assert "cannot" in text


def test_little_memory_and_what_was_killed_for_it_are_told(
    gateway: Gateway, patient: Patient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, size in (("max", 2**30), ("current", 2**30 - 2**20)):
        (tmp_path / f"memory.{name}").write_text(f"{size}\n")
    (tmp_path / "memory.stat").write_text(f"anon {2**30 - 2**20}\ninactive_file 0\n")
    monkeypatch.setattr(doctor_module, "_CGROUP", str(tmp_path / "memory"))
    found, text = health(patient, "memory")
    assert found is Health.FAIL
    assert text.startswith("0.0 of 1.0 GiB free")
    (tmp_path / "memory.stat").write_text(f"anon {2**20}\ninactive_file {2**30 - 2**21}\n")
    assert health(patient, "memory") == (Health.OK, "1.0 of 1.0 GiB free (None)")
    monkeypatch.setenv("FARM_NAME", gateway.queue.farm)
    notice.post(gateway.queue, "a worker on host-1 was killed because memory is short there")
    found, text = health(patient, "workers")
    assert found is Health.FAIL
    assert "memory is short" in text


def test_a_worker_that_a_scheduler_wants_and_that_does_not_run_is_told(
    gateway: Gateway, patient: Patient, fake_worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_NAME", gateway.queue.farm)
    told = "worker-1 is pending for 40 s: no node of the cluster has 1 GPU"
    placed_workers.post(
        gateway.queue,
        [
            PlacedWorker("worker-0", WorkerState.RUNNING),
            PlacedWorker("worker-1", WorkerState.PENDING, "no node of the cluster has 1 GPU", 40),
        ],
    )
    assert health(patient, "workers") == (Health.WARN, f"{told} (None)")
    ready = httpx2.get(f"{gateway.url}/readyz").json()
    assert (ready["placed"], ready["missing"]) == (2, [told])


def test_a_worker_that_does_not_reach_the_store_is_told(
    gateway: Gateway, patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_NAME", gateway.queue.farm)
    token = "7" * 32
    gateway.queue.register(token, "worker-7", ["x@1"], {})
    gateway.queue.heartbeat(token, 0, {}, {"waited": 97}, 10_000)
    found, text = health(patient, "workers")
    assert found is Health.WARN
    assert text.startswith("worker-7: what it has drawn waits for the store, for 97 s (does its")


def test_a_job_that_the_queue_has_forgotten_for_its_age_is_not_missed(
    gateway: Gateway, tmp_path: Path
) -> None:
    """Whatever this process's environment says of that age."""
    store, days = LocalStore(tmp_path / "old"), 86_400
    record, _ = gateway.app_deps.ingest.open("ann", JobOptions())
    record = record.model_copy(update={"job": job_id(time.time() - 5 * days)})
    store.put(keys.header(record.job), record.model_dump_json().encode())
    for kept, missed in ((2, []), (7, [f"it does not know job {record.job}"])):
        gateway.queue.keep(retention_days=kept, open_hours=24)
        assert amiss(gateway.queue, store) == missed


def test_a_store_that_lets_several_writers_win_fails(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_anyway(self: LocalStore, key: str, data: bytes, **_: str) -> bool:
        self.delete(key)
        return put(self, key, data) or True

    put = LocalStore.put
    monkeypatch.setattr(LocalStore, "put", write_anyway)
    found, text = health(patient, "store")
    assert found is Health.FAIL
    assert "If-None-Match" in text


def test_the_command_prints_a_line_a_check_and_its_code_tells_of_failures(
    gateway: Gateway,
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FARM_URL", gateway.url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.delenv("FARM_STORE", raising=False)
    assert run(["doctor", "--data", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("fail  gateway")
    assert any(line.startswith("ok    store") for line in lines)
    assert run(["doctor", "--data", str(tmp_path), "--json"]) == 1
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {one["health"] for one in told} <= {"ok", "warn", "fail"}
    assert all({"check", "health", "told", "hint"} == one.keys() for one in told)
