"""The script that is run on a GPU for minutes only: it must not be there that it breaks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "gpu.py"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_its_sweep_runs_on_a_cpu_with_a_tiny_model(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCH), "--rehearse", "--only", "sweep-256"]
    subprocess.run([*command, "--out", str(tmp_path)], check=True, timeout=540)
    stages = json.loads((tmp_path / "gpu-rehearsal.json").read_text())["stages"]
    assert "error" not in stages["sweep-256"]
    assert stages["sweep-256"]
