"""A sink that no file of the farm knows, from an installed package, used from submit to delete."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest
from fake_engine import BAD_PROMPT, FakeEngine
from harness import Gateway, post, until

from farm.errors import Conflict, NotFound
from farm.formats.manifest import ManifestRow, read_part
from farm.formats.picture_file import read_facts
from farm.formats.picture_record import PictureRecord
from farm.job import Chunk
from farm.sinks.parts import rows_of
from farm.sinks.protocol import RowId, Source, StoredObject, TaskPlace
from farm.sinks.registry import Sinks
from farm.store import Store, keys
from farm_client import Farm, Job
from workers import Workers

TESTS = Path(__file__).parents[1]
STALLS = "BUNDLE_STALLS"  # in a worker's environment: it gets no further than its bundle


class Spot(NamedTuple):
    """Where a picture lies in a bundle; as text, a row's ``file``."""

    key: str
    offset: int
    name: str
    bundle_size: int
    bundle_sha256: str

    def __str__(self) -> str:
        return json.dumps(self)

    @classmethod
    def of(cls, row: ManifestRow) -> "Spot":
        return cls(*json.loads(row.file or ""))


class Bundle:
    """All pictures of a task in one object: a JSON line with name and size, then the file."""

    sharded = True
    tokens_alone = False

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder

    def store_picture(self, place: TaskPlace, record: PictureRecord, data: bytes) -> ManifestRow:
        spool = self._spool(place)
        spool.mkdir(parents=True, exist_ok=True)
        draft = spool / f".{record.file_name}"
        draft.write_bytes(data)
        draft.replace(spool / record.file_name)
        return record.stored_row(record.file_name, data)

    def store_task(self, place: TaskPlace, rows: Sequence[ManifestRow]) -> Sequence[ManifestRow]:
        failed = [row for row in rows if row.file is None]
        if len(failed) == len(rows):
            return failed
        try:
            data = self._store.get(self._key(place))
        except NotFound:
            spooled = sorted(self._spool(place).glob("[!.]*"))
            data = b"".join(_entry(path.name, path.read_bytes()) for path in spooled)
            if not self._store.put(self._key(place), data):
                data = self._store.get(self._key(place))
            if STALLS in os.environ:
                _end_with_the_worker()
        return [*failed, *self._rows(place, data, lambda picture: True)]

    def forget(self, place: TaskPlace) -> None:
        shutil.rmtree(self._spool(place), ignore_errors=True)

    def stored_pictures(
        self, place: TaskPlace, chunk: Chunk, wanted: Set[RowId]
    ) -> list[ManifestRow]:
        try:
            data = self._store.get(self._key(place))
            return list(self._rows(place, data, wanted.__contains__))
        except (NotFound, Conflict, ValueError):
            return []

    def objects(self, rows: Iterable[ManifestRow]) -> Iterator[StoredObject]:
        bundles: dict[tuple[str, int, str], list[ManifestRow]] = {}
        for row in rows:
            if row.file is not None:
                spot = Spot.of(row)
                name = spot.key, spot.bundle_size, spot.bundle_sha256
                bundles.setdefault(name, []).append(row)
        for name, held in bundles.items():
            yield StoredObject(*name, tuple(held))

    def source(self, row: ManifestRow) -> Source:
        spot = Spot.of(row)
        return Source(spot.key, spot.name, row.size or 0, spot.offset)

    def _key(self, place: TaskPlace) -> str:
        return f"{place.data}{place.number:08d}.bundle"

    def _spool(self, place: TaskPlace) -> Path:
        return self._folder / f"{place.job}.{place.generation}.{place.number}"

    def _rows(
        self, place: TaskPlace, data: bytes, wanted: Callable[[RowId], bool]
    ) -> Iterator[ManifestRow]:
        sha256 = hashlib.sha256(data).hexdigest()
        at = 0
        while at < len(data):
            start = data.index(b"\n", at) + 1
            name, size = json.loads(data[at:start])
            at = start + size
            render, image = map(int, name.partition(".")[0].split("-"))
            if wanted((render, image)):
                picture = data[start:at]
                spec = read_facts(picture).spec
                record = PictureRecord(
                    place.job, place.generation, render, image, spec, "", place.format
                )
                spot = Spot(self._key(place), start, name, len(data), sha256)
                yield record.stored_row(str(spot), picture)


def _entry(name: str, data: bytes) -> bytes:
    return json.dumps([name, len(data)]).encode() + b"\n" + data


def _end_with_the_worker() -> None:
    worker = os.getppid()
    while os.getppid() == worker:
        time.sleep(0.01)
    os._exit(1)


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with the entry point, for this process and those that it starts."""
    site = tmp_path / "site"
    facts = site / "bundles-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: bundles\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[amused_farm.sinks]\nbundle = {__name__}:Bundle\n")
    monkeypatch.syspath_prepend(str(site))
    paths = [str(site), str(TESTS), str(TESTS / "gateway")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


@pytest.fixture
def farm(gateway: Gateway) -> Iterator[Farm]:
    with Farm(gateway.url) as farm:
        yield farm


def submit(gateway: Gateway, farm: Farm, *prompts: str, pictures: int = 5) -> Job:
    until(gateway.queue.sessions)  # the checkpoint is known by then
    texts = prompts or [f"picture {number}" for number in range(pictures)]
    return farm.submit(list(texts), sink="bundle", checkpoint="fake", seed=1, num_inference_steps=3)


def objects(gateway: Gateway, job: Job) -> dict[str, bytes]:
    """The job's data, by the end of their keys."""
    data = keys.all_data(job.id)
    return {
        entry.key.removeprefix(data): gateway.store.get(entry.key)
        for entry in gateway.store.list(data)
    }


def check_pictures(job: Job, pictures: int = 5) -> dict[int, bytes]:
    found = {image.render: image.bytes() for image in job.images() if image.error is None}
    assert sorted(found) == list(range(pictures))
    for render, data in found.items():
        assert read_facts(data).spec.prompt == f"picture {render}"
    return found


def test_a_job_is_stored_listed_read_and_fetched(
    gateway: Gateway, workers: Workers, farm: Farm, tmp_path: Path
) -> None:
    workers.start()
    job = submit(gateway, farm)
    job.wait(120)
    assert list(objects(gateway, job)) == ["0/00000000.bundle"]
    (finished,) = gateway.queue.finished(job.id)
    rows = read_part(gateway.store.get(finished.receipt.part))
    assert finished.receipt.done == 5
    assert [row.picture for row in rows] == [(render, 0) for render in range(5)]
    pictures = check_pictures(job)
    assert {image.file for image in job.images()} == {f"{n:08d}-00.png" for n in range(5)}
    fetched = job.fetch(tmp_path / "out")
    assert (fetched.pictures, fetched.failed) == (5, 0)
    assert (tmp_path / "out" / "00000003-00.png").read_bytes() == pictures[3]
    assert job.verify().differences == ()
    until(lambda: not list((tmp_path / "worker" / "scratch").glob("*/bundle/*")))


def test_a_failed_picture_is_in_the_manifest_alone(
    gateway: Gateway, workers: Workers, farm: Farm
) -> None:
    workers.start()
    job = submit(gateway, farm, "picture 0", BAD_PROMPT)
    job.wait(120, check=False)
    check_pictures(job, 1)
    assert job.verify().differences == ()


def test_a_killed_publisher_loses_and_doubles_nothing(
    gateway: Gateway, workers: Workers, farm: Farm, tmp_path: Path
) -> None:
    engine = FakeEngine(rows=1)
    worker = workers.start(engine=engine)
    job = submit(gateway, farm, pictures=20)
    scratch = tmp_path / "worker" / "scratch"
    until(lambda: len(list(scratch.glob("*/bundle/*/*.png"))) >= 3)
    engine.gate.clear()
    pid = worker._publisher.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    engine.gate.set()
    job.wait(120)
    assert len(engine.rendered) == 20
    check_pictures(job, 20)


def start_victim(
    gateway: Gateway, redis_url: str, tmp_path: Path, **variables: str
) -> subprocess.Popen[bytes]:
    """A worker in a process that can be killed."""
    environment = {
        **os.environ, "REDIS_URL": redis_url, "FARM_NAME": "test", "FARM_LEASE_MS": "2000",
        "FARM_STORE": gateway.store.url, "FARM_DATA": str(tmp_path / "victim"),
        "FARM_CHECKPOINTS": "fake", **variables,
    }  # fmt: skip
    command = [sys.executable, str(TESTS / "cluster" / "worker_process.py"), "victim"]
    return subprocess.Popen(command, env=environment)


def test_a_killed_worker_leaves_the_bytes_of_an_undisturbed_job(
    gateway: Gateway, workers: Workers, farm: Farm, redis_url: str, tmp_path: Path
) -> None:
    victim = start_victim(gateway, redis_url, tmp_path)
    try:
        job = submit(gateway, farm, pictures=100)
        spooled = tmp_path / "victim" / "scratch"
        until(lambda: list(spooled.glob("*/bundle/*/*.png")))
    finally:
        victim.kill()
        victim.wait()
    assert objects(gateway, job) == {}
    workers.start()
    job.wait(120)
    undisturbed = submit(gateway, farm, pictures=100)
    undisturbed.wait(120)
    assert objects(gateway, job) == objects(gateway, undisturbed)
    check_pictures(job, 100)


def test_a_worker_killed_between_its_bundle_and_its_receipt_leaves_nothing_to_render(
    gateway: Gateway, workers: Workers, farm: Farm, redis_url: str, tmp_path: Path
) -> None:
    victim = start_victim(gateway, redis_url, tmp_path, **{STALLS: "1"})
    try:
        job = submit(gateway, farm, pictures=20)
        until(lambda: objects(gateway, job))
    finally:
        victim.kill()
        victim.wait()
    stored = objects(gateway, job)
    assert list(gateway.store.list(keys.part(job.id, 0, 0))) == []
    assert gateway.queue.finished(job.id) == []
    engine = FakeEngine()
    workers.start(engine=engine)
    job.wait(120)
    assert engine.rendered == []
    assert objects(gateway, job) == stored
    check_pictures(job, 20)


def test_a_lost_part_is_written_again_from_the_bundle_alone(
    gateway: Gateway, workers: Workers, farm: Farm
) -> None:
    workers.start()
    first = submit(gateway, farm)
    first.wait(120)
    (finished,) = gateway.queue.finished(first.id)
    part = gateway.store.get(finished.receipt.part)
    gateway.store.delete(finished.receipt.part)
    chunk = Chunk.model_validate_json(gateway.store.get(keys.chunk(first.id, 0)))
    sink = Sinks(gateway.store, Path("unused")).get("bundle")
    place = TaskPlace.of(chunk, 0)
    found = sink.stored_pictures(place, chunk, set(rows_of(chunk)))
    assert len(sink.store_task(place, found)) == 5, "nothing of it waits in the folder"
    found = first.verify(repair=True)
    assert [one.kind for one in found.differences] == ["part-missing"]
    assert found.left == 0
    assert gateway.store.get(finished.receipt.part) == part


@pytest.mark.parametrize("lost", [True, False])
def test_a_lost_or_damaged_bundle_is_named_and_its_pictures_are_made_again(
    gateway: Gateway, workers: Workers, farm: Farm, lost: bool
) -> None:
    workers.start()
    job = submit(gateway, farm)
    job.wait(120)
    before = check_pictures(job)
    key = keys.data(job.id, 0) + "00000000.bundle"
    data = gateway.store.get(key)
    gateway.store.delete(key)
    if not lost:
        gateway.store.put(key, data[:-1] + bytes([data[-1] ^ 1]))
    found = job.verify(repair=True)
    kind = "missing" if lost else "wrong-sha256"
    assert [(one.kind, one.subject) for one in found.differences] == [(kind, key)]
    assert (found.left, found.generation) == (0, 1)
    job.wait(120)
    assert list(objects(gateway, job).values()) == [data]
    assert check_pictures(job) == before
    assert job.status().images.done == 5
    assert job.verify().differences == ()
    assert gateway.queue.check() == []


def test_a_part_of_a_bundle_is_read_with_its_own_signature_only(
    gateway: Gateway, workers: Workers, farm: Farm, http: httpx2.Client
) -> None:
    workers.start()
    job = submit(gateway, farm)
    job.wait(120)
    image = http.get(f"/v1/jobs/{job.id}/images").json()["images"][0]
    assert http.get(image["url"]).status_code == 200
    whole = image["url"].partition("&part=")[0]
    assert http.get(whole).status_code == 401
    assert http.get(f"{whole}&part=0%2B9").status_code == 401


def test_all_pictures_of_a_job_are_deleted_and_no_others(
    gateway: Gateway, workers: Workers, farm: Farm
) -> None:
    workers.start()
    jobs = [submit(gateway, farm) for _ in range(2)]
    for job in jobs:
        job.wait(120)
    jobs[0].remove()
    assert objects(gateway, jobs[0]) == {}
    assert list(objects(gateway, jobs[1])) == ["0/00000000.bundle"]


def test_an_unknown_sink_is_refused_with_those_that_are_known(http: httpx2.Client) -> None:
    answer = post(http, {"prompt": "a"}, sink="bundel")
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["code"], error["field"]) == ("invalid", "sink")
    assert (
        error["hint"]
        == "did you mean 'bundle'? known here: bundle, images, parquet, tokens, webdataset"
    )
