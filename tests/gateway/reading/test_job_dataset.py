"""A job read for training, while it renders and afterwards."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from fault_proxy import FaultProxy
from harness import Gateway, until

import farm_client
from farm.errors import InvalidInput, Unavailable
from farm.formats.picture_file import read_facts
from farm.ingest.ndjson import Entries, Entry
from farm.job import JobOptions
from farm_client import Farm, Job, connection, job_dataset
from farm_client.models import Picture
from workers import Workers

PICTURES = 24
SHARD = 4
ALL = list(range(PICTURES))
DEFAULTS = {"checkpoint": "fake", "num_inference_steps": 1, "guidance_scale": 1}


@pytest.fixture
def farm(gateway: Gateway) -> Iterator[Farm]:
    with Farm(gateway.url) as farm:
        yield farm


def renders(numbers: range) -> list[dict[str, Any]]:
    return [{"prompt": f"p {n}", "metadata": {"number": n}} for n in numbers]


def submit(gateway: Gateway, farm: Farm, sink: str = "webdataset") -> Job:
    until(gateway.queue.sessions)  # the checkpoint is known by then
    options: dict[str, Any] = {} if sink == "images" else {"shard_size": SHARD}
    return farm.submit_many(
        renders(range(PICTURES)),
        sink=sink,
        seed=1,
        defaults=DEFAULTS,  # type: ignore[typeddict-item]
        **options,
    )


def number(row: dict[str, Any]) -> int:
    assert row["prompt"] == f"p {row['metadata']['number']}"
    return int(row["metadata"]["number"])


def render(row: dict[str, Any]) -> int:
    return int(row["render"])


@pytest.mark.parametrize("sink", ["images", "webdataset", "parquet", "tokens"])
def test_every_row_comes_once_with_its_pixels_and_columns(
    gateway: Gateway, workers: Workers, farm: Farm, sink: str
) -> None:
    job = submit(gateway, farm, sink)
    rows = list(farm_client.dataset(job))  # follows the job to its end
    assert sorted(map(number, rows)) == ALL
    images = {image.render: image for image in job.images()}
    for row in rows:
        data = images[row["render"]].bytes()
        if sink == "tokens":
            assert row["tokens"].numpy().astype("<u2").tobytes() == data
        else:
            assert read_facts(data).spec.prompt == row["prompt"]
            assert row["image"].shape == (3, 32, 32)
            assert row["image"].dtype == torch.uint8
    again = farm_client.dataset(job, transform=number)
    assert list(again) == list(again) == [number(row) for row in rows]


READING = """
import json, sys
import farm_client

reader = farm_client.dataset(sys.argv[1], transform=lambda row: row["metadata"]["number"])
for number in reader:  # as a training loop that keeps its position with each step
    print(json.dumps([number, reader.state_dict()]), flush=True)
"""


def test_a_reader_given_half_of_the_job_while_it_ran_killed_and_resumed_saw_every_row_once(
    gateway: Gateway, workers: Workers, farm: Farm
) -> None:
    until(gateway.queue.sessions)
    ingest, half = gateway.app_deps.ingest, PICTURES // 2
    options = JobOptions.parse({"sink": "webdataset", "shard_size": SHARD, "seed": 1})
    record, _ = ingest.open("local", options)

    def append(piece: int, numbers: range) -> None:
        entries = Entries.of(Entry({**DEFAULTS, **one}) for one in renders(numbers))
        ingest.append(record, piece, numbers.start, [entries])

    append(0, range(half))
    first = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", READING, record.job],
        env={**os.environ, "FARM_URL": gateway.url}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert first.stdout is not None
    told = [first.stdout.readline() for _ in range(half - 1)]
    first.kill()  # somewhere in the last shard, or while it waits for more
    told += first.stdout.readlines()
    assert first.wait() == -signal.SIGKILL
    assert not farm.job(record.job).status().ended
    append(1, range(half, PICTURES))
    ingest.close(record, 2)
    seen, state = zip(*map(json.loads, told), strict=True)
    resumed = farm_client.dataset(farm.job(record.job), transform=number)
    resumed.load_state_dict(state[-1])
    assert sorted([*seen, *resumed]) == ALL
    assert sorted(resumed) == ALL, "the next epoch starts at the beginning"


def test_a_reader_may_take_longer_than_the_addresses_of_pictures_last(
    gateway: Gateway, workers: Workers, farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(gateway, farm, "images")  # one task with all pictures
    job.wait(120)
    monkeypatch.setattr(job_dataset, "FRESH_SECONDS", 0.0)
    fetched, later, signer = threading.Semaphore(0), 0.0, gateway.app_deps.signer
    monkeypatch.setattr(signer, "_now", lambda: time.time() + later)
    fetch = job_dataset._row

    def row(file: tuple[Picture, bytes]) -> dict[str, Any]:
        made = fetch(file)
        fetched.release()
        return made

    monkeypatch.setattr(job_dataset, "_row", row)
    seen = []
    for number_ in farm_client.dataset(job, transform=number, parallel=1):
        assert fetched.acquire(timeout=60)
        later += 7200
        seen.append(number_)
    assert sorted(seen) == ALL


def test_few_pictures_are_decoded_before_they_are_wanted(
    gateway: Gateway, workers: Workers, farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although one request reads a shard of them: pixels take far more memory than files."""
    until(gateway.queue.sessions)
    job = farm.submit_many(renders(range(PICTURES)), sink="webdataset", seed=1, defaults=DEFAULTS)  # type: ignore[arg-type]
    job.wait(120)
    decoded, decode = [], job_dataset._row

    def row(file: tuple[Picture, bytes]) -> dict[str, Any]:
        decoded.append(file[0].key)
        return decode(file)

    monkeypatch.setattr(job_dataset, "_row", row)
    for count, _ in enumerate(farm_client.dataset(job, parallel=2), start=1):
        assert len(decoded) <= count + 4
    assert len(decoded) == PICTURES


def test_a_farm_that_is_away_at_the_start_of_an_epoch_is_waited_for(
    gateway: Gateway, workers: Workers, farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As patiently as the job's farm is told to be, in other processes, too."""
    id_ = submit(gateway, farm).id
    farm.job(id_).wait(120)
    monkeypatch.setattr(connection, "FIRST_PATIENCE_SECONDS", 0.0)
    address = urlsplit(gateway.url)
    with FaultProxy(str(address.hostname), address.port) as proxy:
        monkeypatch.setenv("FARM_URL", f"http://{proxy.address}")
        rows = farm_client.dataset(id_, transform=render)
        for reader in (rows, rows, pickle.loads(pickle.dumps(rows))):
            proxy.cut(to_client=0)
            assert sorted(reader) == ALL
        hasty = farm_client.dataset(Farm(patience=0).job(id_))
        proxy.cut(to_client=0)
        with pytest.raises(Unavailable):
            list(hasty)


def test_ranks_share_the_rows(gateway: Gateway, workers: Workers, farm: Farm) -> None:
    job = submit(gateway, farm)
    job.wait(120)
    shares = [
        list(farm_client.dataset(job, transform=number, rank=rank, ranks=3)) for rank in range(3)
    ]
    assert sorted(one for share in shares for one in share) == ALL
    assert {len(share) for share in shares} == {PICTURES // 3}
    with pytest.raises(InvalidInput, match="not one of 3 ranks"):
        farm_client.dataset(job, rank=3, ranks=3)


LOADED = """
import json, sys
from torchdata.stateful_dataloader import StatefulDataLoader
import farm_client

def loader():
    reader = farm_client.dataset(sys.argv[1], transform=lambda row: row["render"])
    return StatefulDataLoader(reader, batch_size=5, num_workers=2)

stopped = loader()
batches = iter(stopped)
seen = [number for _ in range(2) for number in next(batches).tolist()]
state = stopped.state_dict()
del batches
resumed = loader()
resumed.load_state_dict(state)
print(json.dumps(seen + [number for batch in resumed for number in batch.tolist()]))
"""


def test_a_loader_with_workers_is_stopped_and_resumed(
    gateway: Gateway, workers: Workers, farm: Farm
) -> None:
    """In a process of its own: this one has threads, and a loader forks."""
    job = submit(gateway, farm)
    job.wait(120)
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOADED, job.id],
        env={**os.environ, "FARM_URL": gateway.url}, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    assert sorted(json.loads(told.stdout)) == ALL


def test_a_position_in_another_job_is_refused(gateway: Gateway, farm: Farm) -> None:
    one, other = (farm.submit("x", checkpoint="shapes-64") for _ in range(2))
    state = farm_client.dataset(one).state_dict()
    with pytest.raises(InvalidInput, match=one.id):
        farm_client.dataset(other).load_state_dict(state)
    assert list(farm_client.dataset(one, follow=False)) == []
