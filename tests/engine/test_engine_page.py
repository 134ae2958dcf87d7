"""The code of docs/engine.md runs as it stands there."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from farm_workers.engine import Engine

PAGE = (Path(__file__).parents[2] / "docs/engine.md").read_text(encoding="utf-8")
SCRIPT, NOTEBOOK, DRAW, DATASET = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def _run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_the_script_leaves_its_pictures_and_tells_of_the_wrong_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _run(SCRIPT)
    assert {file.name for file in tmp_path.iterdir()} == {"0-0.png", "1-0.png", "1-1.png"}
    assert capsys.readouterr().out.startswith("2 error[invalid] guidance_scale")


def test_the_notebook_draws_in_three_modes() -> None:
    pictures = _run(NOTEBOOK)["pictures"]
    assert {key: one.size for key, one in pictures.items()} == dict.fromkeys(range(3), (64, 64))


# A cluster of this process's own, which takes no more than it needs.
LOCAL_RAY = """
import ray

ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20)
"""
ALONE = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # otherwise it binds every interface
    "RAY_USAGE_STATS_ENABLED": "0",
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.xdist_group("placement")  # with the other tests that start Ray
def test_the_class_for_ray_data_draws_in_an_actor_what_the_engine_draws_here(
    tmp_path: Path,
) -> None:
    script = tmp_path / "dataset.py"
    script.write_text(LOCAL_RAY + DRAW + DATASET)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, **ALONE},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=500)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    # Ray's own lines are on stdout as well.
    rows = re.findall(r"^(\d+)  (\d+\.\d+)$", printed, flags=re.MULTILINE)
    requests = [{"prompt": "a red circle", "seed": seed} for seed in range(8)]
    expected = {
        result.key: result.pixels.mean()
        for result in Engine.load("shapes-64", threads=1).generate(requests)
        if result.pixels is not None
    }
    assert process.returncode == 0
    assert {int(seed): float(mean) for seed, mean in rows} == expected
    assert len(set(expected.values())) == 8
