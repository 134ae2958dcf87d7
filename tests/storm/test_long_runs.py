"""What only ``make`` runs, because it takes long, still starts."""

import subprocess
import sys
from pathlib import Path

import pytest

STORM = Path(__file__).parent


@pytest.mark.parametrize("script", ["storm.py", "damage.py", "disk_full.py"])
def test_a_long_run_starts_by_itself(script: str) -> None:
    """Without what pytest adds to the path."""
    told = subprocess.run([sys.executable, str(STORM / script), "--help"], capture_output=True)
    assert told.returncode == 0, told.stderr.decode()
