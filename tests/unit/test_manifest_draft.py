"""A manifest in the making: what it takes of the folder it is in, and which lines count."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from farm_client.manifest_draft import ManifestDraft
from farm_client.output_folder import MANIFEST

LOCK = """
import fcntl, sys
for name in sys.argv[1:]:
    with open(name, "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
"""


def line(render: int, generation: int = 0, error: str | None = None) -> dict[str, Any]:
    return {"render": render, "image": 0, "generation": generation, "error": error}


def test_lines_stand_in_the_order_of_the_job_and_the_newest_good_one_counts(tmp_path: Path) -> None:
    folder = tmp_path / "50% of ü? #1"
    folder.mkdir()
    draft = ManifestDraft(folder)
    lost, good, late = line(2, 0, "lost"), line(2, 1), line(2, 2, "late")
    with draft.writing():
        draft.add([lost, line(3, 0, "lost"), good])
        draft.add([line(1), late])
        assert draft.finish(lambda text: text) == 1
    assert [path.name for path in folder.iterdir()] == [MANIFEST]
    told = map(json.loads, (folder / MANIFEST).read_text().splitlines())
    assert list(told) == [line(1), good, line(3, 0, "lost")]


def test_a_folder_needs_no_locks(tmp_path: Path) -> None:
    """A network's folder may have none, and then refuses every call for one."""
    draft = ManifestDraft(tmp_path)
    with draft.writing():
        draft.add([line(1)])
        subprocess.run([sys.executable, "-c", LOCK, *tmp_path.iterdir()], check=True)
