"""One folder receives the pictures of one job."""

import json
import resource
from pathlib import Path

import pytest
from fake_engine import INFO, FakeEngine

from farm.errors import InvalidInput
from farm.job import Chunk, Format
from farm.renders import NumberedSpec, Renders
from farm.sinks.registry import Sinks
from farm.spec import RenderRequest
from farm.store.local import ReplacingStore
from farm_client.output_folder import MANIFEST, MARK, OutputFolder
from farm_workers.local_renderer import LocalRenderer

MINE = "j0-01m848b6zxgnjbpp0f506dqmht"
OTHER = "j0-01m848b6zxgnjbpp0f506dqmhv"
PICTURE = "00000000-00.png"


def fetched(folder: Path, job: str, *, whole: bool) -> OutputFolder:
    """A folder as a fetch leaves it."""
    output = OutputFolder(folder, job)
    output.claim()
    (folder / PICTURE).write_bytes(b"picture")
    if whole:
        (folder / MANIFEST).write_text(json.dumps({"job": job, "render": 0}) + "\n")
        output.finish()
    return output


@pytest.mark.parametrize("whole", [True, False])
def test_a_job_goes_on_in_its_own_folder(tmp_path: Path, whole: bool) -> None:
    fetched(tmp_path / "out", MINE, whole=whole).claim()
    assert (tmp_path / "out" / PICTURE).exists()


def test_a_disk_that_takes_nothing_is_one_line_and_keeps_whose_pictures_these_are(
    tmp_path: Path,
) -> None:
    output = fetched(tmp_path, MINE, whole=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(InvalidInput, match="cannot be written to"):
            output.claim()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name for path in tmp_path.iterdir()} == {MARK, PICTURE}
    output.claim()  # it goes on


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("owner", [MINE, "render"])
def test_another_jobs_pictures_are_refused_until_they_may_go(
    tmp_path: Path, whole: bool, owner: str
) -> None:
    fetched(tmp_path, OTHER, whole=whole)
    (tmp_path / "notes.txt").write_text("mine")
    output = OutputFolder(tmp_path, owner)
    for resume in (False, True):
        with pytest.raises(InvalidInput, match=OTHER):
            output.claim(resume=resume)
        with pytest.raises(InvalidInput, match=OTHER):
            output.check(resume=resume)
    assert (tmp_path / PICTURE).read_bytes() == b"picture"
    output.claim(overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [MARK, "notes.txt"]


@pytest.mark.parametrize("owner", [MINE, "render"])
@pytest.mark.parametrize("there", [PICTURE, "00000003-00.u16", "00000003.tar", "00000003.parquet"])
def test_pictures_that_name_no_job_can_be_kept(tmp_path: Path, owner: str, there: str) -> None:
    (tmp_path / there).write_bytes(b"picture")
    (tmp_path / "manifest.jsonl").write_text("{}\n")
    output = OutputFolder(tmp_path, owner)
    with pytest.raises(InvalidInput, match="--resume"):
        output.claim()
    output.claim(resume=True)
    assert (tmp_path / there).exists()


def test_a_folder_of_other_files_is_free(tmp_path: Path) -> None:
    for mine in ("photo.png", "20250101.parquet", "000000.tar"):
        (tmp_path / mine).write_bytes(b"mine")
    OutputFolder(tmp_path, MINE).check()
    OutputFolder(tmp_path, MINE).claim(overwrite=True)
    assert (tmp_path / "20250101.parquet").read_bytes() == b"mine"
    assert not OutputFolder(tmp_path / "none", MINE).check()
    assert not (tmp_path / "none").exists()


def test_a_render_goes_on_with_its_facts_only_when_it_is_asked_to(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path, "render")
    assert output.claim(seed=7) == {}
    with pytest.raises(InvalidInput, match="--resume"):
        output.claim(seed=8)
    assert output.claim(resume=True, seed=8)["seed"] == 7
    with pytest.raises(InvalidInput, match="not both"):
        output.claim(resume=True, overwrite=True)


def test_a_place_that_cannot_be_a_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInput, match="is a file"):
        OutputFolder(tmp_path / "file", MINE).claim()


@pytest.mark.parametrize(
    ("folder", "words"), [("file", "is a file"), ("file/deeper", "be made"), ("/proc/x", "be made")]
)
def test_a_place_is_tried_out_before_a_job_is_made_for_it(
    tmp_path: Path, folder: str, words: str
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInput, match=words):
        OutputFolder(tmp_path / folder, "").try_out()
    OutputFolder(tmp_path / "new" / "deep", "").try_out()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def chunks(count: int, size: int, sink: str) -> list[Chunk]:
    specs = [
        NumberedSpec(
            render=number,
            spec=RenderRequest(prompt=f"p{number}", num_images=2).resolve(INFO, seed=number),
            metadata=f'{{"id":{number}}}',
        )
        for number in range(count)
    ]
    return [
        Chunk(
            job="local", number=start, tenant="local", sink=sink, format=Format.PNG,
            lane=str(specs[0].spec.lane), renders=Renders.of(specs[start : start + size]),
        )
        for start in range(0, count, size)
    ]  # fmt: skip


def render(out: Path, todo: list[Chunk], *, resume: bool = False) -> tuple[int, dict[str, bytes]]:
    """How many pictures were made, and the files that are there then."""
    engine = FakeEngine()
    into = Sinks(ReplacingStore(out), out.with_suffix(".waiting")).get(todo[0].sink)
    renderer = LocalRenderer({INFO.name: engine}, {INFO.name: INFO}, lambda _: b"", into, resume)
    rows = list(renderer.render(todo))
    wanted = [(one, image) for chunk in todo for one in chunk.renders for image in range(2)]
    assert sorted(row.picture for row in rows) == [(one.render, image) for one, image in wanted]
    assert {(row.render, row.metadata) for row in rows} == {
        (one.render, one.metadata) for one, _ in wanted
    }
    assert {row.error for row in rows} == {None}
    return len(engine.rendered), {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize("sink", ["images", "webdataset"])
def test_a_render_that_goes_on_makes_only_what_is_missing(tmp_path: Path, sink: str) -> None:
    todo = chunks(6, 1 if sink == "images" else 3, sink)
    count, whole = render(tmp_path / "out", todo)
    assert count == 12
    lost = sorted(whole)[-1]
    (tmp_path / "out" / lost).unlink()
    count, again = render(tmp_path / "out", todo, resume=True)
    assert count == (1 if sink == "images" else 6)
    assert again == whole
    assert render(tmp_path / "out", todo, resume=True) == (0, whole)


def test_a_shard_that_lacks_pictures_is_made_again_as_a_whole(tmp_path: Path) -> None:
    render(tmp_path / "out", chunks(4, 3, "webdataset"))
    todo = chunks(6, 3, "webdataset")
    count, again = render(tmp_path / "out", todo, resume=True)
    assert count == 6, "the first shard is kept"
    assert again == render(tmp_path / "other", todo)[1]
