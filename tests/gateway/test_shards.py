"""The sinks that put a task's pictures into one object, used from submit to delete."""

import hashlib
import io
import itertools
import json
import os
import random
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fake_engine import BAD_PROMPT, INFO, FakeEngine
from harness import Gateway, until

from farm.errors import InvalidInput
from farm.formats.manifest import read_part
from farm.formats.picture_file import read_facts, token_bytes
from farm.job import Chunk
from farm.sinks.parts import part_bytes, rows_of
from farm.sinks.protocol import TaskPlace
from farm.sinks.registry import Sinks
from farm.store import keys
from farm.store.local import ReplacingStore
from farm_client import Farm, Fetched, Job
from farm_workers.local_renderer import LocalRenderer
from workers import Workers

TESTS = Path(__file__).parents[1]
SUFFIXES = {"webdataset": ".tar", "parquet": ".parquet", "tokens": ".parquet"}
SIZE = 8  # pictures of a shard


@pytest.fixture(params=SUFFIXES)
def sink(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def farm(gateway: Gateway) -> Iterator[Farm]:
    with Farm(gateway.url) as farm:
        yield farm


def submit(gateway: Gateway, farm: Farm, sink: str, pictures: int = 20, *others: str) -> Job:
    until(gateway.queue.sessions)  # the checkpoint is known by then
    renders = [
        {"prompt": text, "metadata": {"Category": f"of {number}"}}
        for number, text in enumerate([*(f"picture {n}" for n in range(pictures)), *others])
    ]
    defaults = {"checkpoint": "fake", "num_inference_steps": 3}
    size = None if sink == "images" else SIZE
    return farm.submit_many(renders, sink=sink, shard_size=size, seed=1, defaults=defaults)


def shards(gateway: Gateway, job: Job) -> dict[str, bytes]:
    """The job's data, by the end of their keys."""
    data = keys.all_data(job.id)
    return {
        entry.key.removeprefix(data): gateway.store.get(entry.key)
        for entry in gateway.store.list(data)
    }


def assert_shards(fetched: Fetched, stored: Mapping[str, bytes]) -> None:
    """The folder has what is stored, and the manifest says where each picture lies."""
    suffix = next(iter(stored)).partition(".")[2]
    names = {}
    for place, data in stored.items():
        generation, _, name = place.partition("/")
        names[name if generation == "0" else name.replace(".", f".{generation}.", 1)] = data
    found = {path.name: path.read_bytes() for path in fetched.folder.glob(f"*.{suffix}")}
    assert found == names
    for line in map(json.loads, fetched.manifest.read_text().splitlines()):
        if line["error"] is None:
            picture = found[line["shard"]][line["offset"] :][: line["size"]]
            assert hashlib.sha256(picture).hexdigest() == line["sha256"]


def columns(sink: str, shard: bytes) -> list[dict[str, object]]:
    """What stands beside the pictures of a shard, read without the farm."""
    if sink != "webdataset":
        return [dict(row) for row in pq.read_table(io.BytesIO(shard)).to_pylist()]
    with tarfile.open(fileobj=io.BytesIO(shard)) as archive:
        found = [member for member in archive if member.name.endswith(".json")]
        told = [json.loads(archive.extractfile(member).read()) for member in found]  # type: ignore[union-attr]
    return [{**one, **one["metadata"]} for one in told]


def test_a_job_is_stored_listed_fetched_and_deleted(
    gateway: Gateway, workers: Workers, farm: Farm, sink: str, tmp_path: Path
) -> None:
    workers.start()
    job = submit(gateway, farm, sink)
    job.wait(120)
    stored = shards(gateway, job)
    assert list(stored) == [f"0/0000000{number}{SUFFIXES[sink]}" for number in range(3)]
    told = [one for shard in stored.values() for one in columns(sink, shard)]
    assert [one["prompt"] for one in told] == [f"picture {number}" for number in range(20)]
    assert [one["Category"] for one in told] == [f"of {number}" for number in range(20)]
    fetched = job.fetch(tmp_path / "out")
    assert (fetched.pictures, fetched.failed) == (20, 0)
    lines = [json.loads(line) for line in fetched.manifest.read_text().splitlines()]
    for line, one in zip(lines, told, strict=True):
        data = (tmp_path / "out" / line["file"]).read_bytes()
        for name in ("render", "seed", "numerics", "confidence", "sha256", "tokens_sha256"):
            assert one[name] == line[name]
        assert line["shard"] == f"{line['render'] // SIZE:08d}{SUFFIXES[sink]}"
        if sink == "tokens":
            assert data == one["tokens"]
        else:
            assert read_facts(data).spec.prompt == one["prompt"]
    assert_shards(job.fetch(tmp_path / "shards", shards=True), stored)
    assert job.verify().differences == ()
    until(lambda: not list((tmp_path / "worker" / "scratch").glob(f"*/{sink}/*")))
    job.remove()
    assert list(gateway.store.list(keys.prefix(job.id))) == []


def test_a_failed_picture_is_in_the_manifest_alone_and_a_retry_adds_it(
    gateway: Gateway, workers: Workers, farm: Farm, sink: str, tmp_path: Path
) -> None:
    engine = FakeEngine()
    workers.start(engine=engine)
    job = submit(gateway, farm, sink, 3, BAD_PROMPT)
    job.wait(120, check=False)
    before = shards(gateway, job)
    fetched = job.fetch(tmp_path, shards=True)
    assert (fetched.pictures, fetched.skipped, fetched.failed) == (3, 0, 1)
    assert_shards(fetched, before)
    assert [len(columns(sink, shard)) for shard in before.values()] == [3]
    engine.healed = True
    job.retry()
    job.wait(120)
    after = shards(gateway, job)
    assert before.items() < after.items()
    (name,) = after.keys() - before.keys()
    assert [one["prompt"] for one in columns(sink, after[name])] == [BAD_PROMPT]
    fetched = job.fetch(tmp_path, shards=True)
    assert (fetched.pictures, fetched.skipped, fetched.failed) == (4, 3, 0)
    assert_shards(fetched, after)
    (tmp_path / f"00000000{SUFFIXES[sink]}").write_bytes(b"damaged")
    assert job.fetch(tmp_path, shards=True).skipped == 1
    assert_shards(fetched, after)
    with pytest.raises(InvalidInput, match="cannot be signed"):
        job.fetch(tmp_path, shards=True, sign=bytes)
    assert job.verify().differences == ()


@pytest.mark.slow
def test_workers_killed_anywhere_leave_the_bytes_of_undisturbed_jobs(
    gateway: Gateway, workers: Workers, farm: Farm, redis_url: str, tmp_path: Path
) -> None:
    environment = {
        **os.environ, "REDIS_URL": redis_url, "FARM_NAME": "test", "FARM_LEASE_MS": "2000",
        "FARM_STORE": gateway.store.url, "FARM_CHECKPOINTS": "fake",
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS / "gateway")]),
    }  # fmt: skip
    command = [sys.executable, str(TESTS / "cluster" / "worker_process.py")]
    jobs: list[Job] = []
    moments = random.Random(1)
    for number in range(3):
        data = tmp_path / f"victim-{number}"
        victim = subprocess.Popen(
            [*command, f"victim-{number}"], env={**environment, "FARM_DATA": str(data)}
        )
        try:
            jobs = jobs or [submit(gateway, farm, sink, 40) for sink in SUFFIXES]
            until(lambda: list(data.glob("scratch/*/*/*/*")))  # noqa: B023  called at once
            time.sleep(moments.random())  # where in its work it is killed is all the same
        finally:
            victim.kill()
            victim.wait()
    assert not all(job.status().ended for job in jobs)
    workers.start()
    undisturbed = [submit(gateway, farm, sink, 40) for sink in SUFFIXES]
    for job, other in zip(jobs, undisturbed, strict=True):
        job.wait(120)
        other.wait(120)
        assert shards(gateway, job) == shards(gateway, other)
        assert job.verify().differences == ()


def test_one_process_makes_the_same_shards(
    gateway: Gateway, workers: Workers, farm: Farm, sink: str, tmp_path: Path
) -> None:
    workers.start()
    job = submit(gateway, farm, sink)
    job.wait(120)
    chunks = [
        Chunk.model_validate_json(gateway.store.get(entry.key)).model_copy(update={"job": "local"})
        for entry in gateway.store.list(keys.prefix(job.id) + "chunks/")
    ]
    local = Sinks(ReplacingStore(tmp_path / "out"), tmp_path / "waiting").get(sink)
    renderer = LocalRenderer({INFO.name: FakeEngine()}, {INFO.name: INFO}, lambda _: b"", local)
    rows = list(renderer.render(chunks))
    assert sorted(row.picture for row in rows) == [(render, 0) for render in range(20)]
    made = {f"0/{path.name}": path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert made == shards(gateway, job)


def test_a_lost_part_is_written_again_from_the_shard_alone(
    gateway: Gateway, workers: Workers, farm: Farm, sink: str
) -> None:
    workers.start()
    job = submit(gateway, farm, sink)
    job.wait(120)
    key = keys.part(job.id, 0, 1)
    part = gateway.store.get(key)
    gateway.store.delete(key)
    found = job.verify(repair=True)
    assert [(one.kind, one.subject) for one in found.differences] == [("part-missing", key)]
    assert found.left == 0
    assert gateway.store.get(key) == part


def spoil(data: bytes, kind: str, chance: random.Random) -> bytes | None:
    at = chance.randrange(len(data))
    match kind:
        case "wrong-size":
            return data[:at] if chance.random() < 0.5 else data + data[:1]
        case "wrong-sha256":
            return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    return None


@pytest.mark.parametrize("sink", ["images", *SUFFIXES])
def test_what_was_deleted_or_altered_is_named_exactly_and_comes_back_with_the_same_bytes(
    gateway: Gateway, workers: Workers, farm: Farm, sink: str
) -> None:
    """A tenth of the objects at random, and three at least."""
    workers.start()
    job = submit(gateway, farm, sink, 80)
    job.wait(120)
    before = shards(gateway, job)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    chosen = chance.sample(sorted(before), max(len(before) // 10, 3))
    spoilt = dict(zip(chosen, itertools.cycle(("missing", "wrong-size", "wrong-sha256"))))
    for name, kind in spoilt.items():
        key = keys.all_data(job.id) + name
        gateway.store.delete(key)
        if (data := spoil(before[name], kind, chance)) is not None:
            gateway.store.put(key, data)
    expected = {(kind, keys.all_data(job.id) + name) for name, kind in spoilt.items()}
    named = job.verify()
    assert {(one.kind, one.subject) for one in named.differences} == expected
    assert len(named.differences) == len(expected)
    found = job.verify(repair=True)
    assert {(one.kind, one.subject) for one in found.differences} == expected
    assert (found.left, found.generation) == (0, 1)
    job.wait(120)
    after = shards(gateway, job)
    again = {"1" + name[1:] if name in spoilt else name: data for name, data in before.items()}
    assert after == again
    assert job.verify().differences == ()
    assert gateway.queue.check() == []


def test_another_attempt_takes_over_the_shard_that_is_there(
    gateway: Gateway, workers: Workers, farm: Farm, sink: str, tmp_path: Path
) -> None:
    """A picture that the shard lacks fails there, and a retry makes it."""
    engine = FakeEngine()
    workers.start(engine=engine)
    job = submit(gateway, farm, sink, 3, BAD_PROMPT)
    job.wait(120, check=False)
    chunk = Chunk.model_validate_json(gateway.store.get(keys.chunk(job.id, 0)))
    place = TaskPlace.of(chunk, 0)
    rows = read_part(gateway.store.get(str(place.part)))
    store = Sinks(gateway.store, tmp_path / "other").get(sink)
    found = store.stored_pictures(place, chunk, set(rows_of(chunk)))
    assert read_part(part_bytes(found)) == rows[:3]
    local = Sinks(ReplacingStore(tmp_path / "out"), tmp_path / "other").get(sink)
    healed = FakeEngine()
    healed.healed = True
    renderer = LocalRenderer({INFO.name: healed}, {INFO.name: INFO}, lambda _: b"", local)
    late = [row for row in renderer.render([chunk]) if row.render == 3]
    rows_now = sorted(store.store_task(place, [*found, *late]), key=lambda row: row.picture)
    assert read_part(part_bytes(rows_now))[:3] == rows[:3]
    assert "after the shard of its task was stored" in str(rows_now[3].failure)
    assert rows_now[3].file is None


def test_tokens_are_those_of_the_pictures(gateway: Gateway, workers: Workers, farm: Farm) -> None:
    workers.start()
    jobs = {sink: submit(gateway, farm, sink, 5) for sink in ("tokens", "parquet")}
    for job in jobs.values():
        job.wait(120)
    tokens = {image.render: image.bytes() for image in jobs["tokens"].images()}
    for image in jobs["parquet"].images():
        assert token_bytes(read_facts(image.bytes()).tokens) == tokens[image.render]
