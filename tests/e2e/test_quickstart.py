"""The quickstart does what it says, block by block, on a farm that runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from running_farm import RunningFarm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.xdist_group("farm")]

PAGE = (Path(__file__).parents[2] / "docs" / "quickstart.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_quickstart_leaves_its_pictures(farm: RunningFarm, tmp_path: Path) -> None:
    here = str(Path(sys.executable).parent)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("FARM_")},
        "FARM_DATA": str(farm.data),
        "PATH": f"{here}{os.pathsep}{os.environ['PATH']}",
    }
    for kind, code in BLOCKS:
        command = ["bash", "-euo", "pipefail", "-c"] if kind == "sh" else [sys.executable, "-c"]
        done = subprocess.run(
            [*command, code], cwd=tmp_path, env=environment, capture_output=True, text=True,
            timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, f"{code}\n{done.stderr}"
    found = {folder.name: len(list(folder.glob("*.png"))) for folder in tmp_path.glob("*/")}
    assert found == {"out": 1, "rings": 4, "changed": 1, "crosses": 2, "squares": 2}
