"""The comparison of manifest, queue and store, on plain records."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from picture_key import picture_key

from farm.formats.manifest import ManifestRow, write_part
from farm.job import Format, Receipt
from farm.sinks.images import Images
from farm.store import ListedObject, keys
from farm.store.local import LocalStore
from farm.verify.compare import Comparison, Counts, Part
from farm.verify.difference import Difference, Kind
from farm.verify.index import job_index

JOB = "j0-01m848b6zxgnjbpp0f506dqmht"
IMAGES = Images(LocalStore(Path("unused")), Path("unused"))


class Made:
    """A job as its store holds it: one task of two pictures and a failed one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        whole = keys.header(JOB), keys.success(JOB), keys.chunk(JOB, 0)
        self.objects = dict.fromkeys(whole, b"{}")
        rows = [self.row(0), self.row(1), self.row(2, error='{"code": "render", "message": "x"}')]
        self.parts = [self.part(rows)]
        self.counted = Counts(done=2, failed=1)
        self.lost = 0

    def row(self, render: int, generation: int = 0, error: str | None = None) -> ManifestRow:
        file = data = None
        if error is None:
            file = picture_key(JOB, generation, render, 0, Format.PNG)
            data = self.objects[file] = f"picture {render} of {generation}".encode()
        return ManifestRow(
            job=JOB, generation=generation, render=render, image=0, file=file,
            sha256=None if data is None else hashlib.sha256(data).hexdigest(),
            size=None if data is None else len(data),
            width=64, height=64, seed=1, spec_sha256="", spec="{}", tokens=None,
            tokens_sha256=None, numerics="", error=error,
        )  # fmt: skip

    def part(self, rows: list[ManifestRow], generation: int = 0) -> Part:
        data, key = write_part(rows), keys.part(JOB, generation, 0)
        self.objects[key] = data
        receipt = Receipt(
            done=sum(row.error is None for row in rows),
            failed=sum(row.error is not None for row in rows),
            size=0, part=key, part_sha256=hashlib.sha256(data).hexdigest(), numerics="",
        )  # fmt: skip
        return Part(generation, receipt, data)

    def compare(self, *others: Part) -> list[Difference]:
        """
        Args:
            others: of a second task.
        """
        with job_index(self.folder) as index:
            index.add_objects(ListedObject(key, len(data)) for key, data in self.objects.items())
            comparison = Comparison(
                JOB, IMAGES, index, lambda key: hashlib.sha256(self.objects[key]).hexdigest()
            )
            found = list(comparison.task(0, self.parts, self.lost))
            if others:
                found += comparison.task(1, others)
            return found + list(comparison.end(self.counted, generation=0, complete=True))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


PICTURE = picture_key(JOB, 0, 0, 0, Format.PNG)
PART = keys.part(JOB, 0, 0)
STRAY = picture_key(JOB, 0, 9, 0, Format.PNG)


def remove(key: str) -> Callable[[Made], None]:
    return lambda made: made.objects.__delitem__(key)


def write(key: str, data: bytes) -> Callable[[Made], None]:
    return lambda made: made.objects.__setitem__(key, data)


def lose_part(made: Made) -> None:
    made.parts = [made.parts[0]._replace(data=None)]


def change_part(made: Made) -> None:
    made.parts = [made.parts[0]._replace(data=b"other bytes")]


def list_twice(made: Made) -> None:
    made.parts = [made.part([made.row(0), made.row(0), made.row(1)])]
    made.counted = Counts(2, 0)


def make_twice(made: Made) -> None:
    made.parts.append(made.part([made.row(0, generation=1)], generation=1))
    made.counted = Counts(2, 1)


def miscount(made: Made) -> None:
    made.counted = Counts(3, 1)


def test_a_job_that_is_whole_has_no_differences(made: Made) -> None:
    assert made.compare() == []


DAMAGES: list[tuple[Callable[[Made], None], Kind, str]] = [
    (remove(PICTURE), Kind.MISSING, PICTURE),
    (write(PICTURE, b"short"), Kind.WRONG_SIZE, PICTURE),
    (write(PICTURE, b"picture 7 of 0"), Kind.WRONG_SHA256, PICTURE),
    (lose_part, Kind.PART_MISSING, PART),
    (change_part, Kind.PART_CHANGED, PART),
    (list_twice, Kind.LISTED_TWICE, PICTURE),
    (make_twice, Kind.LISTED_TWICE, PICTURE),
    (write(STRAY, b"x"), Kind.ORPHAN, STRAY),
    (miscount, Kind.COUNT, "done"),
    (remove(keys.success(JOB)), Kind.MISSING, keys.success(JOB)),
    (remove(keys.header(JOB)), Kind.MISSING, keys.header(JOB)),
    (remove(keys.chunk(JOB, 0)), Kind.MISSING, keys.chunk(JOB, 0)),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "kind", "subject"), DAMAGES)
def test_each_damage_is_told_by_its_name(
    made: Made, damage: Callable[[Made], None], kind: Kind, subject: str
) -> None:
    damage(made)
    assert [(one.kind, one.subject) for one in made.compare()] == [(kind, subject)]


def test_a_picture_made_again_counts_once_and_its_failure_no_more(made: Made) -> None:
    made.parts.append(made.part([made.row(2, generation=1)], generation=1))
    made.counted = Counts(done=3, failed=0)
    assert made.compare() == []


def test_a_lost_picture_that_was_made_again_is_not_missed(made: Made) -> None:
    make_twice(made)
    del made.objects[PICTURE]
    assert made.compare() == []


def test_a_lost_part_does_not_make_its_older_files_missed(made: Made) -> None:
    make_twice(made)
    del made.objects[PICTURE]  # its newer file is listed by the part that is lost
    made.parts[1] = made.parts[1]._replace(data=None)
    assert [one.kind for one in made.compare()] == [Kind.PART_MISSING]


def test_no_object_is_called_an_orphan_while_a_part_cannot_be_read(made: Made) -> None:
    lose_part(made)
    made.objects[STRAY] = b"x"
    assert [one.kind for one in made.compare()] == [Kind.PART_MISSING]


def test_the_pictures_of_a_task_without_attempts_left_count_as_failed(made: Made) -> None:
    made.lost = 1  # the retry of the failed picture
    assert made.compare() == []


def test_a_picture_that_another_task_lists_too_is_told_of_the_later_one(made: Made) -> None:
    made.objects[keys.chunk(JOB, 1)] = b"{}"
    other = made.part([made.row(1), made.row(3)])
    made.objects[PART] = made.parts[0].data or b""
    made.counted = Counts(3, 1)
    assert made.compare(other) == [
        Difference(Kind.LISTED_TWICE, picture_key(JOB, 0, 1, 0, Format.PNG), task=1)
    ]
