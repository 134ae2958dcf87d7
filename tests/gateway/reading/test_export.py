"""Jobs as data sets, read by the libraries that others wrote."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import mlcroissant
import pyarrow.parquet as pq
import pytest
import webdataset
from certificates import signing_pair
from harness import Gateway, until

from farm.cli.app import run
from farm.errors import InvalidInput
from farm.export.export import PLAN, STATE
from farm.export.splits import Splits
from farm.formats.credentials import told_credentials
from farm.formats.picture_file import read_facts, token_bytes
from farm_client import Farm, Job
from farm_client.manifest_draft import ManifestDraft
from farm_client.scores import Score, add_scores
from workers import Workers

PICTURES = 24
OWN = ["Category", "The challenge", "rating", "words", "good"]


@pytest.fixture
def farm(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Farm]:
    monkeypatch.setenv("FARM_URL", gateway.url)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    with Farm(gateway.url) as farm:
        yield farm


def own(number: int) -> dict[str, Any]:
    """Columns of every kind, some of which are missing here and there."""
    told: dict[str, Any] = {"Category": f"of {number % 3}", "rating": number, "words": ["a", "b"]}
    told["good"] = number % 2 == 0
    if number % 5 == 1:
        told |= {"The challenge": "Basic", "rating": number + 0.5}
    return told


def submit(gateway: Gateway, farm: Farm, sink: str = "images", **options: Any) -> Job:
    until(gateway.queue.sessions)  # the checkpoint is known by then
    renders = [{"prompt": f"p {n // 2}", "metadata": own(n)} for n in range(PICTURES)]
    defaults = {"checkpoint": "fake", "num_inference_steps": 1, "guidance_scale": 1}
    options |= {} if sink == "images" else {"shard_size": 10}
    job = farm.submit_many(renders, sink=sink, seed=1, defaults=defaults, **options)
    job.wait(120)
    return job


def export(job: Job, folder: Path, kind: str, *flags: str) -> Path:
    assert (
        run(["export", job.id, "-o", str(folder), "--as", kind, "--shard-size", "7", *flags]) == 0
    )
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def check_columns(rows: Any) -> None:
    assert [row["prompt"] for row in rows] == [f"p {n // 2}" for n in range(PICTURES)]
    for number, row in enumerate(rows):
        expected = own(number)
        assert [row[name] for name in OWN] == [expected.get(name) for name in OWN]
        assert json.loads(row["metadata"]) == expected


@pytest.mark.parametrize("kind", ["parquet", "imagefolder"])
def test_datasets_reads_pictures_with_all_columns(
    gateway: Gateway, workers: Workers, farm: Farm, kind: str, tmp_path: Path
) -> None:
    job = submit(gateway, farm)
    out = export(job, tmp_path / "out", kind)
    loaded = datasets.load_dataset(str(out), split="train")
    check_columns(loaded)
    pictures = {image.render: read_facts(image.bytes()).tokens for image in job.images()}
    raw = loaded.cast_column("image", datasets.Image(decode=False))
    for row in raw:
        data = row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes()
        assert (read_facts(data).tokens == pictures[row["render"]]).all()
    assert loaded[0]["image"].size == (32, 32)
    if kind == "imagefolder":
        plain = datasets.load_dataset("imagefolder", data_dir=str(out), split="train")
        check_columns(plain)


def test_webdataset_reads_pictures_with_all_columns(
    gateway: Gateway, workers: Workers, farm: Farm, tmp_path: Path
) -> None:
    out = export(submit(gateway, farm), tmp_path / "out", "webdataset")
    shards = sorted(map(str, (out / "data").glob("*.tar")))
    assert [Path(name).name for name in shards] == [f"train-0000{n}.tar" for n in range(4)]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil"))
    assert len(samples) == PICTURES
    for number, sample in enumerate(samples):
        assert sample["__key__"] == f"{number:08d}-00"
        assert sample["png"].size == (32, 32)
        assert sample["json"]["prompt"] == f"p {number // 2}"
        assert sample["json"]["metadata"] == own(number)


def test_tokens_are_read_with_all_columns(
    gateway: Gateway, workers: Workers, farm: Farm, tmp_path: Path
) -> None:
    job = submit(gateway, farm)
    out = export(job, tmp_path / "out", "tokens")
    loaded = datasets.load_dataset(str(out), split="train")
    check_columns(loaded)
    for image, row in zip(sorted(job.images(), key=lambda one: one.render), loaded, strict=True):
        assert row["tokens"] == token_bytes(read_facts(image.bytes()).tokens)


def test_the_same_pictures_from_any_sink_give_the_same_data_set(
    gateway: Gateway, workers: Workers, farm: Farm, tmp_path: Path
) -> None:
    made = []
    for sink in ("images", "webdataset", "parquet"):
        job = submit(gateway, farm, sink, name="drawings")
        found = files(export(job, tmp_path / sink, "webdataset"))
        made.append({name: data for name, data in found.items() if name != "_SUCCESS"})
    assert made[0] == made[1] == made[2]
    tokens = [
        files(export(submit(gateway, farm, sink), tmp_path / f"{sink}-tokens", "tokens"))
        for sink in ("images", "tokens")
    ]
    data = [
        {name: data for name, data in found.items() if name.startswith("data/")} for found in tokens
    ]
    assert data[0] == data[1]


def test_splits_keep_all_pictures_of_a_prompt_together(
    gateway: Gateway, workers: Workers, farm: Farm, tmp_path: Path
) -> None:
    job = submit(gateway, farm)
    out = export(job, tmp_path / "out", "parquet", "--split", "train=0.6,test=0.4")
    loaded = datasets.load_dataset(str(out))
    prompts = {name: set(split["prompt"]) for name, split in loaded.items()}
    assert not prompts["train"] & prompts["test"]
    assert {len(found) for found in prompts.values()} != {0}
    assert sum(len(split) for split in loaded.values()) == PICTURES
    shares = Splits.parse("train=0.6,test=0.4")
    assert all(shares.of(prompt) == name for name, found in prompts.items() for prompt in found)


@pytest.mark.parametrize("kind", ["webdataset", "imagefolder"])
def test_croissant_validates_and_gives_the_rows(
    gateway: Gateway, workers: Workers, farm: Farm, kind: str, tmp_path: Path
) -> None:
    out = export(submit(gateway, farm), tmp_path / "out", kind, "--license", "cc0-1.0")
    dataset = mlcroissant.Dataset(jsonld=str(out / "croissant.json"))
    assert dataset.metadata.ctx.issues.errors == set()
    assert dataset.metadata.ctx.conforms_to.value == "http://mlcommons.org/croissant/1.1"
    records = list(dataset.records("pictures"))
    assert [one["pictures/prompt"].decode() for one in records] == [
        f"p {number // 2}" for number in range(PICTURES)
    ]
    assert records[1]["pictures/The%20challenge"] == b"Basic"
    manifest = pq.read_table(out / "manifest.parquet").to_pylist()
    for row in manifest:
        assert (out / row["shard"]).exists()
        if kind == "imagefolder":
            assert (out / row["shard"] / row["file"]).is_file()
    card = (out / "README.md").read_text()
    assert card.startswith('---\nlicense: "cc0-1.0"\n')
    assert "| `Category` | string | the user's own |" in card
    assert "\nSizes: 32 x 32. " in card
    assert f"\n- `{manifest[0]['numerics']}`\n" in card
    assert f"{PICTURES} pictures generated by {manifest[0]['checkpoint']} with" in card
    croissant = json.loads((out / "croissant.json").read_text())
    [files] = [one for one in croissant["distribution"] if one["@type"] == "cr:FileSet"]
    assert files["name"] == "files-train"
    assert {str(path.relative_to(out)) for path in out.glob(files["includes"])} >= {
        row["shard"] for row in manifest
    }
    fields = {one["name"]: one for one in croissant["recordSet"][0]["field"]}
    kinds = {name: fields[name]["dataType"] for name in ("width", "rating", "good", "words")}
    assert list(kinds.values()) == ["sc:Integer", "sc:Float", "sc:Boolean", "sc:Text"]
    assert [name for name, field in fields.items() if field.get("repeated")] == ["words"]
    told = json.loads((out / "statistics.json").read_text())
    (lane,) = told["lanes"].values()
    assert (lane["pictures"], lane["failed"]) == (PICTURES, 0)
    assert {one["shard"] for one in told["shards"]} == {row["shard"] for row in manifest}
    assert all(one["token_entropy"] > 1 for one in told["shards"])


@pytest.mark.parametrize("kind", ["webdataset", "imagefolder"])
def test_a_signed_export_has_content_credentials_and_the_job_keeps_its_bytes(
    gateway: Gateway,
    workers: Workers,
    farm: Farm,
    kind: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = submit(gateway, farm)
    chain, key = signing_pair(tmp_path)
    flags = ["--sign", "--certificate", str(chain), "--key", str(key)]
    out = export(job, tmp_path / "out", kind, *flags)
    rows = pq.read_table(out / "manifest.parquet").to_pylist()
    assert len(rows) == PICTURES
    for row in rows:
        path = out / row["shard"]
        if kind == "imagefolder":
            data = (path / row["file"]).read_bytes()
        else:
            with tarfile.open(path) as archive:
                data = archive.extractfile(row["file"]).read()  # type: ignore[union-attr]
        assert told_credentials(data, chain.read_text()) == "trusted, signed by signer"
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert read_facts(data).spec.prompt == row["prompt"]
    assert job.verify().differences == ()
    unsigned = ["export", job.id, "-o", str(tmp_path / "other"), "--as", kind, "--sign"]
    assert run(unsigned) == InvalidInput.exit_code
    assert "needs a certificate" in capsys.readouterr().err


def no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_signed_fetch_has_content_credentials_and_is_not_repeated(
    gateway: Gateway,
    workers: Workers,
    farm: Farm,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = submit(gateway, farm)
    chain, key = signing_pair(tmp_path)
    out = tmp_path / "out"
    command = ["fetch", job.id, "-o", str(out), "--json"]
    flags = ["--sign", "--certificate", str(chain), "--key", str(key)]
    stored = {image.file: image.sha256 for image in job.images()}

    def fetched(*flags: str) -> tuple[int, list[dict[str, Any]]]:
        """How many were there already, and the manifest."""
        assert run([*command, *flags]) == 0
        skipped = json.loads(capsys.readouterr().out)["skipped"]
        manifest = (out / "manifest.jsonl").read_text().splitlines()
        return skipped, [json.loads(line) for line in manifest]

    for skipped in (0, PICTURES):
        found, lines = fetched(*flags)
        assert (found, len(lines)) == (skipped, PICTURES)
        for line in lines:
            data = (out / line["file"]).read_bytes()
            assert told_credentials(data, chain.read_text()) == "trusted, signed by signer"
            assert (hashlib.sha256(data).hexdigest(), len(data)) == (line["sha256"], line["size"])
            assert line["stored_sha256"] == stored[line["file"]]
    (out / lines[3]["file"]).write_bytes(b"altered")
    assert fetched(*flags)[0] == PICTURES - 1
    with monkeypatch.context() as full:
        full.setattr(ManifestDraft, "finish", no_space)
        shutil.rmtree(out)
        assert run([*command, *flags]) == InvalidInput.exit_code
        assert "No space left" in capsys.readouterr().err
    assert fetched(*flags)[0] == PICTURES, "what was signed is known without the manifest"
    found, lines = fetched()
    assert (found, {line["file"]: line["sha256"] for line in lines}) == (0, stored)
    assert job.verify().differences == ()
    assert run([*command, "--sign"]) == InvalidInput.exit_code
    assert "needs a certificate" in capsys.readouterr().err
    tokens = submit(gateway, farm, "tokens")
    told = ["fetch", tokens.id, "-o", str(tmp_path / "tokens"), *flags]
    assert run(told) == InvalidInput.exit_code
    assert "only PNG, WebP and JPEG files can be signed" in capsys.readouterr().err


def test_an_export_that_was_killed_goes_on_and_gives_the_same_bytes(
    gateway: Gateway, workers: Workers, farm: Farm, tmp_path: Path
) -> None:
    job = submit(gateway, farm)
    expected = files(export(job, tmp_path / "whole", "imagefolder"))
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "farm.cli", "export", job.id, "-o", str(out), "--as", "imagefolder",
        "--shard-size", "7",
    ]  # fmt: skip
    killed = subprocess.Popen(command, env={**os.environ, "FARM_URL": gateway.url})
    until(lambda: list(out.glob(f"{STATE}/fetched/*.png")) or killed.poll() is not None)
    time.sleep(0.02)  # where in its work it is killed is all the same
    killed.kill()
    killed.wait()
    assert files(export(job, out, "imagefolder")) == expected
    first = next(out.glob("train/00000/*.png"))
    told = first.stat().st_mtime_ns
    assert files(export(job, out, "imagefolder")) == expected
    assert first.stat().st_mtime_ns == told, "nothing is written twice"


def test_an_export_that_was_killed_while_it_wrote_does_not_list_the_job_again(
    gateway: Gateway, workers: Workers, farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(gateway, farm)
    expected = files(export(job, tmp_path / "whole", "imagefolder"))
    out = tmp_path / "out"
    command = ["export", job.id, "-o", str(out), "--as", "imagefolder", "--shard-size", "7"]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("farm.export.export._write_manifest", interrupt)
        assert run(command) != 0
    first = next(job.images())
    add_scores(job, "x", [Score(first.render, first.image, str(first.sha256), {"sharpness": 1})])
    monkeypatch.setattr(Job, "fetch", interrupt)
    assert files(export(job, out, "imagefolder")) == expected


def test_an_export_that_has_written_nothing_goes_on_when_its_job_was_retried(
    gateway: Gateway, workers: Workers, farm: Farm, tmp_path: Path
) -> None:
    job = submit(gateway, farm)
    out = tmp_path / "out"
    command = ["export", job.id, "-o", str(out), "--as", "tokens"]
    assert run([*command, "--where", "render < 0"]) == InvalidInput.exit_code
    plan = out / STATE / PLAN
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "generation": -1}))
    assert run(command) == 0


def test_a_folder_that_holds_something_else_is_refused(
    gateway: Gateway,
    workers: Workers,
    farm: Farm,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = submit(gateway, farm)
    out = export(job, tmp_path / "out", "tokens")
    assert run(["export", job.id, "-o", str(out), "--as", "parquet"]) != 0
    assert "holds another export" in capsys.readouterr().err
    export(job, out, "parquet", "--overwrite")
    assert datasets.load_dataset(str(out), split="train").num_rows == PICTURES
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    for flags in ([], ["--overwrite"]):
        assert run(["export", job.id, "-o", str(mine), "--as", "parquet", *flags]) != 0
    assert (mine / "notes.txt").read_text() == "mine"


def test_an_export_to_a_store_is_the_one_to_a_folder(
    gateway: Gateway,
    workers: Workers,
    farm: Farm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FARM_DATA", str(tmp_path / "mine"))
    job = submit(gateway, farm)
    expected = files(export(job, tmp_path / "out", "webdataset"))
    place = (tmp_path / "store").as_uri()
    flags = ["export", job.id, "-o", place, "--as", "webdataset", "--shard-size", "7"]
    assert run(flags) == 0
    assert files(tmp_path / "store") == expected
    assert capsys.readouterr().out.splitlines()[-1] == place
    assert not list((tmp_path / "mine" / "exports").iterdir()), "what was written first has gone"
    assert run([*flags, "--json"]) == 0
    again = capsys.readouterr()
    assert "is whole already" in again.err
    splits = {"train": PICTURES}
    assert json.loads(again.out) == {"folder": place, "pictures": PICTURES, "splits": splits}


@pytest.mark.parametrize("kind", ["imagefolder", "parquet"])
def test_a_whole_export_says_the_same_again(
    gateway: Gateway,
    farm: Farm,
    kind: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = submit(gateway, farm)
    flags = ["export", job.id, "-o", str(tmp_path / "set"), "--as", kind, "--json"]
    flags += ["--split", "data=0.5,t_1=0.3,none=0.2"]
    told = [(run(flags), json.loads(capsys.readouterr().out)) for _ in range(2)]
    assert told[0] == told[1]
    assert sum(told[0][1]["splits"].values()) == told[0][1]["pictures"] > 0
    (tmp_path / "set" / "statistics.json").write_text("[]")
    assert run(flags) == 2
    assert "statistics.json of this export cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["train", "train=x", "a=0.5,a=0.5", "a=0.5", "a=2", "A b=1", "=1"])
def test_splits_that_make_no_sense_are_refused(
    farm: Farm, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = f"j0-{'0' * 26}"
    assert run(["export", job, "-o", str(tmp_path / "x"), "--as", "tokens", "--split", text]) == 2
    assert "train=0.9,test=0.1" in capsys.readouterr().err
