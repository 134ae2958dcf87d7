"""From a fetched job to a data set, without a farm."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from fake_engine import INFO

from farm.errors import Conflict
from farm.export.export import FETCHED, PLAN, STATE, WHOLE, As, Plan, alone, begin, export
from farm.export.fetched import MANIFEST, SELECTED
from farm.export.splits import Splits
from farm.formats.encoding import encode
from farm.formats.picture_record import PictureRecord
from farm.job import Format
from farm.spec import RenderRequest, canonical_json

TARGETS: list[As] = ["webdataset", "parquet", "imagefolder", "tokens"]


def fetch(folder: Path, told: list[dict[str, Any]]) -> None:
    """A job as it lies in the data set's folder when it is fetched; a picture for each metadata."""
    source = folder / STATE / FETCHED
    source.mkdir(parents=True, exist_ok=True)
    lines = []
    for render, metadata in enumerate(told):
        spec = RenderRequest(prompt=f"p {render}").resolve(INFO, seed=render)
        record = PictureRecord(
            "j", 0, render, 0, spec, "n", Format.PNG, (), canonical_json(metadata), 0.5
        )
        pixels = np.full((32, 32, 3), render, np.uint8)
        data = encode(pixels, record.facts(np.full((4, 4), render, np.uint16)), Format.PNG)
        (source / record.file_name).write_bytes(data)
        lines.append(json.dumps(record.stored_row(record.file_name, data).public()) + "\n")
    (source / MANIFEST).write_text("".join(lines))


def make(folder: Path, plan: Plan, told: list[dict[str, Any]]) -> dict[str, int]:
    assert begin(plan, folder)
    fetch(folder, told)
    return export(plan, folder, None).splits


@pytest.mark.parametrize("target", TARGETS)
def test_a_column_of_the_user_never_takes_the_place_of_one_of_the_farm(
    target: As, tmp_path: Path
) -> None:
    own = {
        "file_name": "COCO_1.jpg", "image": 7, "split": "val", "shard": 3, "file": [1],
        "mask_file_name": "m.png", "prompt_id": 5, "seed_file_names": ["a"],
    }  # fmt: skip
    make(tmp_path / "out", Plan("j", target), [own, {}])
    manifest = pq.read_table(tmp_path / "out" / "manifest.parquet").to_pylist()
    assert [row["split"] for row in manifest] == ["train", "train"]
    for row in manifest:
        place = tmp_path / "out" / row["shard"]
        assert (place / row["file"]).is_file() if target == "imagefolder" else place.is_file()
    assert json.loads(manifest[0]["metadata"]) == own
    assert [row["prompt_id"] for row in manifest] == [5, None]
    if target == "imagefolder":
        loaded = datasets.load_dataset(
            str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")
        )
        assert [image.getpixel((0, 0)) for image in loaded["image"]] == [(0, 0, 0), (1, 1, 1)]
        assert json.loads(loaded[0]["metadata"]) == own


def test_overwriting_removes_what_an_export_wrote_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out, Plan("j", "imagefolder", Splits.parse("a=0.5,b=0.5")), [{}] * 4)
    (out / "notes.txt").write_text("mine")
    (out / "data").mkdir()
    (out / "data" / "mine.txt").write_text("mine")
    plan = Plan("k", "tokens")
    with pytest.raises(Conflict, match="another export"):
        begin(plan, out)
    assert begin(plan, out, overwrite=True)
    left = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert left == {"notes.txt", "data/mine.txt", f"{STATE}/plan.json"}


def test_an_export_that_was_killed_at_its_very_end_is_whole(tmp_path: Path) -> None:
    plan = Plan("j", "parquet")
    make(tmp_path, plan, [{}] * 2)
    fetch(tmp_path, [{}] * 2)
    (tmp_path / STATE / PLAN).write_bytes((tmp_path / WHOLE).read_bytes())
    assert not begin(plan, tmp_path)
    assert not (tmp_path / STATE).exists()


def test_an_export_is_not_whole_while_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **given: object) -> None:
        raise KeyboardInterrupt

    plan = Plan("j", "imagefolder")
    make(tmp_path, plan, [{}] * 2)
    with monkeypatch.context() as patched:
        patched.setattr("farm.export.export.shutil", SimpleNamespace(rmtree=interrupt))
        with pytest.raises(KeyboardInterrupt):
            begin(plan, tmp_path, overwrite=True)
    with pytest.raises(Conflict, match="--overwrite"):
        begin(plan, tmp_path)
    assert begin(plan, tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [STATE]


def test_what_another_job_has_left_is_not_taken_for_pictures_of_this_one(tmp_path: Path) -> None:
    fetch(tmp_path, [{}] * 2)
    assert begin(Plan("k", "tokens"), tmp_path)
    assert [path.name for path in (tmp_path / STATE).iterdir()] == [PLAN]


def test_an_export_that_a_full_disk_stopped_at_its_start_can_be_called_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space"):
            begin(Plan("j", "tokens"), tmp_path)
    assert begin(Plan("j", "tokens"), tmp_path)


@pytest.mark.parametrize(
    "told",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"job":"j","target":"imagefolder","splits":1}',
        b'{"job":"j","target":"imagefolder","splits":"../mine=1"}',
        b'{"job":"j","target":"imagefolder","splits":{"../mine":1}}',
    ],
)
def test_a_file_of_another_program_is_not_taken_for_an_export(told: bytes, tmp_path: Path) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine"
    for folder in (out, mine):
        folder.mkdir()
        (folder / "_SUCCESS").write_bytes(told)
    for overwrite in (False, True):
        with pytest.raises(Conflict, match="not an export's"):
            begin(Plan("j", "tokens"), out, overwrite=overwrite)
    assert [path.name for path in (*out.iterdir(), *mine.iterdir())] == ["_SUCCESS"] * 2
    with pytest.raises(Conflict, match="is a file"), alone(out / "_SUCCESS"):
        pass


def test_renders_of_embeddings_have_no_prompt_and_are_split_by_those(tmp_path: Path) -> None:
    plan = Plan("j", "parquet", Splits.parse("train=0.5,test=0.5"))
    assert begin(plan, tmp_path)
    fetch(tmp_path, [{}] * 32)
    manifest = tmp_path / STATE / FETCHED / MANIFEST
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    for line in lines:
        line["spec"] |= {"prompt": None, "embeds": f"{line['render'] % 16:064x}"}
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert all(export(plan, tmp_path, None).splits.values())
    rows = pq.read_table(tmp_path / "manifest.parquet").to_pylist()
    assert len({(json.loads(row["spec"])["embeds"], row["split"]) for row in rows}) == 16


def test_an_export_goes_on_where_the_locale_is_not_utf_8(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from farm.export.export import Plan, begin; "
        "plan, folder = Plan('job', 'parquet', title='H\\xe4user'), Path('set'); "
        "assert begin(plan, folder) and begin(plan, folder)"
    )
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **locale}, cwd=tmp_path, check=True
    )


def test_only_one_export_at_a_time_writes_to_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        alone(out),
        pytest.raises(Conflict, match="another export is writing"),
        alone(out),
    ):
        pass
    with alone(out):
        assert begin(Plan("j", "tokens"), out)


def test_splits_in_another_order_are_another_export(tmp_path: Path) -> None:
    plans = [Plan("j", "tokens", Splits.parse(text)) for text in ("a=0.9,b=0.1", "b=0.1,a=0.9")]
    assert begin(plans[0], tmp_path / "out")
    (tmp_path / "out" / "data").mkdir()  # as soon as something is written
    with pytest.raises(Conflict, match="another export"):
        begin(plans[1], tmp_path / "out")
    assert begin(plans[0], tmp_path / "out"), "it goes on"


def test_while_pictures_were_only_fetched_they_may_be_asked_for_in_another_way(
    tmp_path: Path,
) -> None:
    plan = Plan("j", "imagefolder", where="seed < 0")
    assert begin(plan, tmp_path)
    fetch(tmp_path, [{}] * 2)
    source = tmp_path / STATE / FETCHED
    (source / SELECTED).write_text("what the first wanted")
    with pytest.raises(Conflict, match="another export"):
        begin(plan._replace(job="k"), tmp_path)
    other = plan._replace(where=None, target="tokens")
    assert begin(other, tmp_path)
    assert [path.name for path in sorted(source.glob("*.jsonl"))] == [MANIFEST]
    retried = other._replace(generation=1)
    assert begin(retried, tmp_path)
    assert not list(source.glob("*.jsonl")), "the retry has made more pictures"
    fetch(tmp_path, [{}] * 2)
    assert export(retried, tmp_path, None).pictures == 2
    with pytest.raises(Conflict, match="another export"):
        begin(plan, tmp_path)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_fetched_file_that_is_lost_or_damaged_meanwhile_is_not_taken(
    damage: Callable[[Path], object], tmp_path: Path
) -> None:
    plan = Plan("j", "tokens")
    begin(plan, tmp_path)
    fetch(tmp_path, [{}] * 2)
    damage(next((tmp_path / STATE / FETCHED).glob("*.png")))
    with pytest.raises(Conflict, match="not as it was fetched") as refused:
        export(plan, tmp_path, None)
    assert "--overwrite" in str(refused.value.hint)


@pytest.mark.parametrize("target", TARGETS)
def test_an_interrupted_export_leaves_no_drafts(
    target: As, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, plan = tmp_path / "out", Plan("j", target, shard_size=2)
    begin(plan, out)
    fetch(out, [{}] * 4)

    def interrupt(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(plan, out, None)
    monkeypatch.undo()
    assert list(out.rglob(".*.part")), "the interrupted call has left one"
    assert begin(plan, out)
    export(plan, out, None)
    assert not list(out.rglob(".*"))
    make(tmp_path / "other", plan, [{}] * 4)
    assert _files(out) == _files(tmp_path / "other")


def _files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.parametrize("target", ["parquet", "imagefolder", "webdataset"])
def test_datasets_reads_columns_that_look_different_from_row_to_row(
    target: As, tmp_path: Path
) -> None:
    """Readers that guess types from the first rows, or from those of one split, guess wrong."""
    told: list[dict[str, Any]] = [{"score": number, "day": "2026-01-01"} for number in range(16)]
    told[3]["score"] = 0.5
    told[9] |= {"rare": "once", "list": ["a"], "big": 2**63}
    make(tmp_path / "out", Plan("j", target, Splits.parse("train=0.5,test=0.5")), told)
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    rows = [row.get("json", row) for split in loaded.values() for row in split]
    assert len(rows) == len(told)
    for row in rows:
        expected = told[row["render"]]
        columns = row["metadata"] if target == "webdataset" else row
        assert columns["score"] == expected["score"]
        assert columns["day"] == expected["day"], "a text, not a date"
        assert columns["rare"] == expected.get("rare")
        assert columns["list"] == expected.get("list")
        assert columns["big"] == ("9223372036854775808" if row["render"] == 9 else None)


@pytest.mark.parametrize("target", TARGETS)
def test_datasets_reads_splits_whose_names_are_numbers_or_words_of_yaml(
    target: As, tmp_path: Path
) -> None:
    plan = Plan("j", target, Splits.parse("0=0.3,007=0.3,null=0.4"))
    counts = make(tmp_path / "out", plan, [{}] * 16)
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == counts


def test_an_export_that_an_earlier_version_began_ends_as_one_that_datasets_reads(
    tmp_path: Path,
) -> None:
    out, plan = tmp_path / "out", Plan("j", "imagefolder")
    begin(plan, out)
    (out / "train").mkdir()
    (out / "train" / "metadata.jsonl").write_text('{"file_name": "00000/00000000-00.png"}\n')
    make(out, plan, [{"id": 7}])
    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["id"] == [7]


def test_a_webdataset_has_its_prompts_where_trainers_look_for_captions(tmp_path: Path) -> None:
    """Such as open_clip, which takes no sample without, and waits for more of them for ever."""
    make(tmp_path / "out", Plan("j", "webdataset"), [{}] * 3)
    shard = str(tmp_path / "out" / "data" / "train-00000.tar")
    samples = webdataset.WebDataset(shard, shardshuffle=False).decode("pil")
    pairs = samples.rename(image="jpg;png;jpeg;webp", text="txt").to_tuple("image", "text")
    assert [text for _, text in pairs] == ["p 0", "p 1", "p 2"]
    loaded = datasets.load_dataset(
        str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["txt"] == ["p 0", "p 1", "p 2"]


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_reads_objects_beside_the_pictures_of_a_webdataset_as_objects(
    streaming: bool, tmp_path: Path
) -> None:
    told: list[dict[str, Any]] = [{"id": number} for number in range(8)]
    told[1] |= {"box": {"at": [0.5, 1], "of": "it's"}, "lines": [[1, 2], []], "any": [1, "a"]}
    told[6] |= {"box": {"other": None}, "lines": []}
    make(tmp_path / "out", Plan("j", "webdataset"), told)
    loaded = datasets.load_dataset(
        str(tmp_path / "out"), split="train", streaming=streaming, cache_dir=str(tmp_path / "cache")
    )
    nothing = {"box": None, "lines": None, "any": None}
    assert [row["json"]["metadata"] for row in loaded] == [{**nothing, **one} for one in told]


@pytest.mark.parametrize("target", ["parquet", "imagefolder"])
def test_a_split_without_pictures_does_not_make_the_others_unreadable(
    target: As, tmp_path: Path
) -> None:
    plan = Plan("j", target, Splits.parse("train=0.99,test=0.01"))
    counts = make(tmp_path / "out", plan, [{}])
    assert counts == {"train": 1, "test": 0}
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 1}
    assert "| `test` | 0 |" in (tmp_path / "out" / "README.md").read_text()
