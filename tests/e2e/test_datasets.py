"""Data sets of a whole farm, with a real model."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from running_farm import RunningFarm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.xdist_group("farm")]

PAGE = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")


def test_the_blocks_of_the_page_run_as_they_stand_there(farm: RunningFarm, tmp_path: Path) -> None:
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    quoted = [
        f"python - <<'PYTHON'\n{code}PYTHON\n" if language == "python" else code
        for language, code in blocks
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FARM_")}
    environment |= {
        "FARM_DATA": str(farm.data),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
    }
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(quoted).replace(
            "farm submit", "farm submit --checkpoint shapes-64"
        )],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"^\d pictures, loss \d", ended.stdout, flags=re.MULTILINE)
    assert "2 rows, and 3 more" in ended.stdout
    assert "(64, 64) a blue triangle on a yellow background" in ended.stdout


def test_a_farm_and_a_single_process_make_the_same_shards(
    farm: RunningFarm, tmp_path: Path
) -> None:
    renders = tmp_path / "prompts.txt"
    renders.write_text("".join(f"picture {number}\n" for number in range(5)))
    flags = ["--checkpoint", "shapes-64", "--sink", "parquet", "--shard-size", 2, "--seed", 3]
    job = farm.submit(renders, *flags)
    farm.run("wait", job)
    data = farm.data.glob(f"store/*/{job}/data/0/*")
    stored = {path.name: path.read_bytes() for path in data}
    farm.run("render", renders, "-o", tmp_path / "out", *flags)
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    del made["manifest.jsonl"]
    assert len(stored) == 3
    assert made == stored


def test_tokens_are_decoded_to_the_pictures_that_were_not_stored(
    farm: RunningFarm, tmp_path: Path
) -> None:
    flags = ["a red circle", "a green star", "--checkpoint", "shapes-64", "--seed", 3]
    jobs = {sink: farm.submit(*flags, "--sink", sink) for sink in ("images", "tokens")}
    pictures = farm.fetch(jobs["images"], tmp_path / "images")
    farm.run("wait", jobs["tokens"])
    [shard] = farm.data.glob(f"store/*/{jobs['tokens']}/data/0/*")
    decode = ["decode", shard, "-o", tmp_path / "alone", "--checkpoint", "shapes-64"]
    export = [
        "export", jobs["tokens"], "-o", tmp_path / "decoded", "--as", "imagefolder",
        "--checkpoint", "shapes-64",
    ]  # fmt: skip
    farm.run_in_turn(export, decode, decode)  # what is there already stays
    for row in pictures:
        name = str(row["file"])
        decoded = tmp_path / "decoded" / "train" / "00000" / name
        assert decoded.read_bytes() == (tmp_path / "images" / name).read_bytes()
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "images" / name).read_bytes()


def test_a_picture_that_is_rendered_again_has_the_same_tokens(
    farm: RunningFarm, tmp_path: Path
) -> None:
    job = farm.submit("a red circle", "--num-images", 2, "--seed", 3, "--checkpoint", "shapes-64")
    farm.run("wait", job)
    told = farm.run("rerender", job, 0, "-o", tmp_path).stdout
    assert re.findall(r"^0-(\d) same tokens [0-9a-f]{64}$", told, flags=re.MULTILINE) == ["0", "1"]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["00000000-00.png", "00000000-01.png"]
    assert "0-1 same tokens" in farm.run("rerender", job, 0, "--index", 1).stdout  # alone
