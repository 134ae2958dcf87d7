"""The README's Python runs as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from running_farm import RunningFarm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.xdist_group("farm")]

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_sdk_example_leaves_its_pictures(farm: RunningFarm, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "out").mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FARM_")}
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**environment, "FARM_DATA": str(farm.data)},
        check=True,
        timeout=300,
    )
    assert len(list((tmp_path / "out").iterdir())) == 4
