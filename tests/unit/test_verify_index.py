"""What a verification remembers of a job, and how little memory that takes."""

import hashlib
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from picture_key import picture_key

from farm.errors import Unavailable
from farm.formats.manifest import ManifestRow, write_part
from farm.job import Format, JobState, Receipt
from farm.queue import Failure, Finished, Queue
from farm.sinks.registry import Sinks
from farm.store import ListedObject, Store, keys
from farm.verify.difference import Difference, Kind
from farm.verify.index import job_index
from farm.verify.repair import Verifier, report

JOB = "j0-01m848b6zxgnjbpp0f506dqmht"
TASK = 200  # pictures
PICTURE = b"a picture"


def finished(position: int, number: int, generation: int = 0, sha256: str = "") -> Finished:
    part = keys.part(JOB, generation, number)
    receipt = Receipt(done=TASK, failed=0, size=0, part=part, part_sha256=sha256, numerics="cpu-1")
    return Finished(position, number, generation, receipt)


class WholeJob:
    """Queue and store of a job that has all its pictures, none of which is kept here."""

    def __init__(self, tasks: int) -> None:
        self.numbers = range(tasks)
        self.parts = {keys.part(JOB, 0, number): self._part(number) for number in self.numbers}
        self.sha256 = [hashlib.sha256(data).hexdigest() for data in self.parts.values()]

    def _pictures(self, number: int) -> range:
        return range(number * TASK, (number + 1) * TASK)

    def _part(self, number: int) -> bytes:
        return write_part(
            ManifestRow(
                job=JOB, generation=0, render=render, image=0,
                file=picture_key(JOB, 0, render, 0, Format.PNG),
                sha256=hashlib.sha256(PICTURE).hexdigest(), size=len(PICTURE),
                width=64, height=64, seed=1, spec_sha256="", spec="{}", tokens=None,
                tokens_sha256=None, numerics="",
            )
            for render in self._pictures(number)
        )  # fmt: skip

    def status(self, job: str, tenant: str) -> object:
        return SimpleNamespace(
            id=JOB,
            state=JobState.DONE,
            sink="images",
            generation=0,
            images=SimpleNamespace(done=len(self.numbers) * TASK, failed=0),
            tasks=SimpleNamespace(expired=0),
        )

    def finished(self, job: str, after: int) -> list[Finished]:
        return [
            finished(number + 1, number, sha256=self.sha256[number])
            for number in self.numbers[after : after + 10]
        ]

    def failures(self, job: str, after: int) -> list[Failure]:
        return []

    def list(self, prefix: str) -> Iterator[ListedObject]:
        for number in self.numbers:
            yield ListedObject(keys.chunk(JOB, number), 2)
        for number in self.numbers:
            for render in self._pictures(number):
                yield ListedObject(picture_key(JOB, 0, render, 0, Format.PNG), len(PICTURE))
        yield ListedObject(keys.header(JOB), 2)
        for key, data in self.parts.items():
            yield ListedObject(key, len(data))
        yield ListedObject(keys.success(JOB), 2)

    def get(self, key: str) -> bytes:
        return self.parts[key]

    def stream(self, key: str) -> Iterator[bytes]:
        yield PICTURE


def peak_of(tasks: int, folder: Path) -> int:
    """Bytes of Python's objects; SQLite's cache has a fixed size."""
    job = WholeJob(tasks)
    store = cast(Store, job)
    verifier = Verifier(cast(Queue, job), store, Sinks(store, folder), JOB, "ann")
    tracemalloc.start()
    try:
        for line in report(verifier, folder, repair=False):
            last = line
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert last["verified"]["pictures"] == tasks * TASK
    assert last["verified"]["differences"] == 0
    return peak


def test_ten_times_the_pictures_take_the_same_memory(tmp_path: Path) -> None:
    """Threads of other tests may take some meanwhile, so the least of several times counts."""
    peak_of(2, tmp_path)  # what is loaded on the way stays
    few, many = (min(peak_of(tasks, tmp_path) for _ in range(3)) for tasks in (5, 50))
    assert many < few + 1_500_000, "kept in memory, 9,000 more pictures are 4,000,000 bytes"


def test_nothing_is_left_of_an_index_even_if_its_process_dies(tmp_path: Path) -> None:
    with job_index(tmp_path / "made") as index:
        index.add_objects([ListedObject("key", 1)])
        assert os.listdir(tmp_path / "made") == []
        assert index.list_objects(["key", "other"]) == {"key": 1}


def test_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:

    def fill() -> None:
        with job_index(tmp_path) as index:
            index._database.execute("PRAGMA max_page_count = 16")
            index.add_objects(ListedObject(f"{number:08d}", 1) for number in range(10_000))

    with pytest.raises(Unavailable, match="is full") as caught:
        fill()
    assert str(tmp_path) in caught.value.message
    assert "FARM_DATA" in (caught.value.hint or "")


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="Not a directory"), job_index(tmp_path / "file" / "a"):
        pass


def test_unlisted_objects_come_in_the_order_of_their_keys(tmp_path: Path) -> None:
    foreign = os.fsdecode(b"\xff")  # a file of another program
    with job_index(tmp_path) as index:
        index.add_objects(ListedObject(key, 1) for key in ("a-b", "a/b", "b", foreign))
        index.list_objects(["a/b", "c"])
        assert list(index.unlisted()) == ["a-b", "b", foreign]


def test_pictures_that_were_added_before_are_told(tmp_path: Path) -> None:
    with job_index(tmp_path) as index:
        assert index.add_pictures([(0, 0), (0, 1), (2**40, 0)]) == set()
        assert index.add_pictures([(0, 1), (1, 0), (2**40, 0)]) == {(0, 1), (2**40, 0)}
        assert index.add_pictures([]) == set()


def test_tasks_come_by_number_and_their_generations_as_they_were_done(tmp_path: Path) -> None:
    done = [finished(1, 7), finished(2, 3), finished(3, 7, generation=1)]
    failures = [Failure(1, 5, 0, 9, "oom"), Failure(2, 3, 1, 2, "oom"), Failure(3, 5, 1, 4, "oom")]
    with job_index(tmp_path) as index:
        index.add_finished(done)
        index.add_lost(failures)
        assert list(index.tasks()) == [(3, [done[1]], 2), (5, [], 4), (7, [done[0], done[2]], 0)]
        assert index.finished(7) == [done[0], done[2]]


def test_differences_come_back_as_they_were_found(tmp_path: Path) -> None:
    found = [
        Difference(Kind.WRONG_SIZE, "key", "a", "b", 3),
        Difference(Kind.COUNT, "done", "1", "2"),
    ]
    with job_index(tmp_path) as index:
        for one in found:
            index.add_difference(one)
        assert list(index.differences()) == found
