"""The script that is run on a GPU for minutes only: it must not be there that it breaks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "gpu.py"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_stages_run_on_a_cpu_with_a_tiny_model(tmp_path: Path) -> None:
    """Those that know the engine best, and the farm around it."""
    wanted = ["sweep-256", "farm-256"]
    command = [sys.executable, str(BENCH), "--rehearse", "--seconds", "500", "--only", *wanted]
    subprocess.run([*command, "--out", str(tmp_path)], check=True, timeout=540)
    stages = json.loads((tmp_path / "gpu-rehearsal.json").read_text())["stages"]
    assert stages.keys() == set(wanted)
    for found in stages.values():
        assert "error" not in found
        assert "left_out" not in found
    assert stages["farm-256"]["images_per_second"] > 0
