"""Adapters through the whole farm, with its own engine: command line to files."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from fake_adapters import adapter_file
from running_farm import RunningFarm, manifest

from farm.checkpoints.inspect import inspect_checkpoint
from farm_client import Farm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.xdist_group("farm")]

NAMES = ("one", "two", "three")
SEVERAL = {"one": 1.0, "three": -0.5}


def write_files(farm: RunningFarm, folder: Path) -> dict[str, Path]:
    """Three adapters of other ranks and layers, that of the second for the text encoder too."""
    sizes = inspect_checkpoint(farm.data / "tiny").info.sizes
    assert sizes is not None
    endings = {"one": ".to_q", "two": "_proj", "three": ".ff.net.2"}
    files = {}
    for seed, name in enumerate(NAMES):
        files[name] = folder / f"{name}.safetensors"
        data = adapter_file(seed, sizes, rank=2 + 3 * seed, size=0.5, ending=endings[name])
        files[name].write_bytes(data)
    return files


def write_renders(path: Path) -> Path:
    """Twelve renders of one prompt and seed: with each adapter, with none, with two. Half of them
    take long, so that the job has not ended when its worker is killed."""
    chosen = [{}, *({name: scale} for name in NAMES for scale in (1.0, 0.5, -1.0)), SEVERAL, {}]
    lines = [
        {
            "prompt": "a red circle",
            "seed": 7,
            "num_inference_steps": 40 if 3 <= number < 9 else 6,
            "adapters": [{"adapter": name, "scale": scale} for name, scale in one.items()],
        }
        for number, one in enumerate(chosen)
    ]
    assert len(lines) == 12
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_twelve_renders_with_three_adapters_are_those_of_one_process_whatever_is_killed(
    farm: RunningFarm, tmp_path: Path
) -> None:
    files = write_files(farm, tmp_path)
    renders = write_renders(tmp_path / "renders.jsonl")
    with Farm(farm.url) as sdk:
        digests = {
            name: sdk.add_adapter(name, file, alpha=4 if name == "two" else None).sha256
            for name, file in files.items()
        }
        job = farm.submit(renders)
        for name in NAMES:  # what was accepted needs the names no longer
            assert sdk.remove_adapter(name)
        while sdk.job(job).status().state == "queued":
            time.sleep(0.02)
    os.kill(farm.pid("worker-0"), signal.SIGKILL)
    rows = farm.fetch(job, tmp_path / "farm")
    assert [row["error"] for row in rows] == [None] * 12
    told = rows[10]["spec"]["adapters"]
    assert told == [{"sha256": digests[name], "scale": scale} for name, scale in SEVERAL.items()]
    named = [word for name, file in files.items() for word in ("--adapter", f"{name}={file}")]
    local = ["--checkpoint", farm.data / "tiny", *named, "--alpha", "two=4"]
    farm.run("render", renders, "-o", tmp_path / "local", *local)
    facts = ("render", "file", "sha256", "seed", "tokens_sha256", "spec")
    assert [[row[fact] for fact in facts] for row in manifest(tmp_path / "local")] == [
        [row[fact] for fact in facts] for row in rows
    ]
    tokens = [row["tokens_sha256"] for row in rows]
    assert tokens[0] == tokens[11]
    assert len(set(tokens)) == 11  # each adapter and each scale draws another picture
