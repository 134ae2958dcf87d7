"""From ``farm submit`` to stored pictures, through every process, some of which are killed."""

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from running_farm import FARM, RunningFarm, manifest

from farm_client import Farm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.xdist_group("farm")]

PROMPT = "a large red circle in the centre on a blue background"


def until(condition: Callable[[], object], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.1)


def prompts(count: int) -> list[str]:
    return [f"picture number {number}" for number in range(count)]


def tokens(rows: list[dict[str, object]]) -> dict[object, object]:
    return {row["spec"]["prompt"]: row["tokens_sha256"] for row in rows}  # type: ignore[index]


@pytest.fixture
def sdk(farm: RunningFarm) -> Iterator[Farm]:
    """It waits for what was killed to be back."""
    with Farm(farm.url, patience=300) as sdk:
        next(sdk.jobs(1), None)
        yield sdk


def write_renders(path: Path, *, count: int) -> Path:
    """Different renders: steps, guidance and size vary; no two are alike."""
    lines = [
        {
            "prompt": prompt,
            "seed": number,
            "num_inference_steps": 4 + number % 9,
            "guidance_scale": [1, 3, 5.5][number % 3],
            "temperature": [[2, 0], 1.5][number % 2],
        }
        for number, prompt in enumerate(prompts(count))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_text_becomes_pictures_of_the_asked_size(farm: RunningFarm, tmp_path: Path) -> None:
    job = farm.submit(PROMPT, "--height", 64, "--width", 96, "-n", 2, "--seed", 7)
    rows = farm.fetch(job, tmp_path)
    assert [(row["seed"], row["error"]) for row in rows] == [(7, None), (8, None)]
    for row in rows:
        with Image.open(tmp_path / row["file"]) as picture:
            picture.load()
            assert picture.size == (96, 64)


@pytest.mark.parametrize("mask", [None, "L", "RGBA"])
def test_a_picture_goes_in_and_one_of_its_size_comes_out(
    farm: RunningFarm, tmp_path: Path, mask: str | None
) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "in.png")
    arguments: list[object] = ["--image", tmp_path / "in.png", "--strength", 0.6]
    if mask:
        area = np.zeros((64, 64), np.uint8)
        area[16:48, 16:48] = 255
        Image.fromarray(area).convert(mask).save(tmp_path / "mask.png")
        arguments += ["--mask", tmp_path / "mask.png"]
    job = farm.submit(PROMPT, *arguments)
    (row,) = farm.fetch(job, tmp_path / "out")
    assert row["spec"]["mode"] == ("inpaint" if mask else "img2img")
    with Image.open(tmp_path / "out" / row["file"]) as picture:
        assert picture.size == (64, 64)


def test_the_same_idempotency_key_makes_no_second_job(farm: RunningFarm) -> None:
    first = farm.submit(PROMPT, "--seed", 1, "--idempotency-key", "bikes")
    assert farm.submit(PROMPT, "--seed", 1, "--idempotency-key", "bikes") == first
    other = farm.run("submit", PROMPT, "--seed", 2, "--idempotency-key", "bikes", check=False)
    assert other.returncode == 2
    assert "idempotency key" in other.stderr


def test_watch_goes_on_after_it_was_interrupted(farm: RunningFarm, tmp_path: Path) -> None:
    job = farm.submit(write_renders(tmp_path / "renders.jsonl", count=40))
    watching = subprocess.Popen(
        [*FARM, "watch", job], env=farm.environment, stderr=subprocess.PIPE, text=True
    )
    assert watching.stderr is not None
    first = watching.stderr.readline()
    watching.send_signal(signal.SIGINT)
    _, said = watching.communicate(timeout=120)
    if watching.returncode:  # the job may have been faster
        assert watching.returncode == 130
        assert f"farm watch {job}" in first + said
    assert farm.run("watch", job).returncode == 0


def test_a_row_gives_the_same_tokens_alone_among_others_and_after_a_kill(
    farm: RunningFarm, sdk: Farm, tmp_path: Path
) -> None:
    renders = write_renders(tmp_path / "renders.jsonl", count=64)
    together = farm.fetch(farm.submit(renders), tmp_path / "together")
    killed_job = farm.submit(renders)
    job = sdk.job(killed_job)
    until(lambda: job.status().state != "queued")
    os.kill(farm.pid("worker-0"), signal.SIGKILL)
    killed = farm.fetch(killed_job, tmp_path / "killed")
    assert tokens(killed) == tokens(together)
    for line in (0, 31, 63):
        asked = json.loads(renders.read_text().splitlines()[line])
        (image,) = sdk.submit(**asked).images()
        assert image.told.tokens_sha256 == together[line]["tokens_sha256"]


def test_a_farm_and_a_single_process_make_the_same_files(farm: RunningFarm, tmp_path: Path) -> None:
    renders = write_renders(tmp_path / "renders.jsonl", count=8)
    by_farm = farm.fetch(farm.submit(renders), tmp_path / "farm")
    farm.run("render", renders, "-o", tmp_path / "local", "--checkpoint", farm.data / "tiny")
    facts = ("render", "image", "file", "sha256", "seed", "tokens_sha256", "spec")
    assert [[row[fact] for fact in facts] for row in manifest(tmp_path / "local")] == [
        [row[fact] for fact in facts] for row in by_farm
    ]


@pytest.mark.parametrize("name", ["worker-0", "scheduler", "gateway", "valkey"])
def test_a_job_survives_sigkill_of_each_process(
    farm: RunningFarm, sdk: Farm, tmp_path: Path, name: str
) -> None:
    job = sdk.job(farm.submit(write_renders(tmp_path / "renders.jsonl", count=80)))
    until(lambda: job.status().state != "queued")
    killed = farm.pid(name)
    os.kill(killed, signal.SIGKILL)
    until(lambda: farm.pid(name) != killed)
    until(lambda: job.status().ended)
    rows = farm.fetch(job.id, tmp_path / "out")
    assert sorted(row["render"] for row in rows) == list(range(80))
    assert all(row["error"] is None for row in rows)
    assert len({row["file"] for row in rows}) == 80


def test_a_farm_whose_ray_dies_goes_on_by_itself(farm: RunningFarm, tmp_path: Path) -> None:
    job = farm.submit(write_renders(tmp_path / "renders.jsonl", count=160))
    worker = farm.pid("worker-0")
    (server,) = [one for one in farm.processes() if one.name() == "gcs_server"]
    server.kill()
    until(lambda: "no cluster answers" in farm.run("why", job).stdout)
    told = farm.run("doctor", check=False).stdout
    assert "no answer from its gcs_server" in told
    for page in ("", "/farm", f"/jobs/{job}"):
        with urllib.request.urlopen(f"{farm.url}/page{page}", timeout=60) as answer:
            assert "The workers: ray: no cluster answers at " in answer.read().decode()
    until(lambda: farm.pid("worker-0") != worker)
    rows = farm.fetch(job, tmp_path / "out")
    assert [row["error"] for row in rows] == [None] * 160
    assert (farm.data / "run" / "grafana" / "farm.json").exists()


def test_what_is_stored_is_for_its_owner_alone_and_nothing_is_found_wrong(
    farm: RunningFarm, tmp_path: Path
) -> None:
    assert farm.fetch(farm.submit("a red circle"), tmp_path)[0]["error"] is None
    told = farm.run("doctor", "--json", check=False).stdout
    assert told.count('"fail"') == 0
    assert "tiny@" in told
    modes = {file: file.stat().st_mode & 0o077 for file in (farm.data / "store").rglob("*")}
    assert modes
    assert not any(modes.values())


def test_everything_listens_on_loopback_only(farm: RunningFarm) -> None:
    listening = {
        connection.laddr.ip
        for process in farm.processes()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {farm.pid(name) for name in ("worker-0", "gateway")} <= {
        process.pid for process in farm.processes()
    }
    assert "127.0.0.1" in listening
    assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_each_process_is_known_to_be_the_farms(farm: RunningFarm) -> None:
    """One that is not stays behind when the farm's own process is killed, and the next farm in the
    folder would start a second server on the same files."""
    known = {process.pid for process in farm.processes()}
    names = [file.stem for file in (farm.data / "run").glob("*.pid")]
    assert {"valkey", "ray", "gateway", "scheduler", "worker-0"} <= set(names)
    assert [name for name in names if name != "up" and farm.pid(name) not in known] == []


def test_ray_keeps_no_process_for_each_core_that_has_nothing_to_do(farm: RunningFarm) -> None:
    def running() -> set[str]:
        found = set()
        for process in farm.processes():
            with contextlib.suppress(psutil.Error):
                found.add(" ".join(process.cmdline()).strip())
        return found

    until(lambda: "ray::farm-worker-0" in running())
    until(lambda: "ray::IDLE" not in running())


def test_a_second_farm_in_the_same_folder_is_refused(farm: RunningFarm) -> None:
    ended = farm.run("up", check=False)
    assert ended.returncode == 2
    assert "already runs" in ended.stderr
