"""``farm up`` where a checkpoint or a setting is not as it should be."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from running_farm import FARM, RunningFarm

from farm.local.ports import free_port
from farm_workers.testing.tiny import make_tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_a_checkpoint_that_would_not_load_is_told_before_the_farm_has_started(
    tmp_path: Path,
) -> None:
    farm = RunningFarm(tmp_path / "farm", "")
    make_tiny(tmp_path / "bad")
    config = tmp_path / "bad" / "transformer" / "config.json"
    facts = json.loads(config.read_text())
    config.write_text(json.dumps({**facts, "num_attention_heads": 7}))
    up = [*FARM, "up", "--port", str(free_port()), "--checkpoint", str(tmp_path / "bad")]
    ended = subprocess.run(
        up, env={**os.environ, "FARM_DATA": str(farm.data)}, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert ended.returncode == 2
    told = "error[checkpoint]: bad: transformer/config.json: 128 channels cannot"
    assert told in ended.stderr.splitlines()[-1]
    assert farm.processes() == []


@pytest.mark.parametrize(
    ("name", "value"), [("FARM_KEYS", "/nowhere/keys.json"), ("FARM_LEASE_MS", "soon")]
)
def test_a_wrong_setting_is_told_before_ray_is_started(
    tmp_path: Path, name: str, value: str
) -> None:
    farm = RunningFarm(tmp_path / "farm", "")
    up = [*FARM, "up", "--port", str(free_port()), "--checkpoint", "shapes-64"]
    ended = subprocess.run(
        up, env={**os.environ, "FARM_DATA": str(farm.data), name: value}, capture_output=True,
        text=True, timeout=600,
    )  # fmt: skip
    assert ended.returncode != 0
    assert f"error[invalid] {name}:" in ended.stderr.splitlines()[-1]
    assert farm.processes() == []
    assert not (farm.data / "logs" / "ray.log").exists()
