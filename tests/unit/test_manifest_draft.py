"""The manifest of a fetch: in the job's order, each picture once, whatever order they came in."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farm_client.manifest_draft import ManifestDraft
from farm_client.output_folder import MANIFEST

LINES = st.lists(
    st.builds(
        lambda picture, generation, good: {
            "render": picture // 3, "image": picture % 3, "generation": generation,
            "error": None if good else {"code": "render"}, "prompt": "é\n" * generation,
        },
        st.integers(0, 20), st.integers(0, 3), st.booleans(),
    ),
    max_size=60,
)  # fmt: skip
LOCK = """
import fcntl, sys
for name in sys.argv[1:]:
    with open(name, "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
"""


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES, pages=st.integers(1, 4))
def test_the_newest_good_line_of_each_picture_stands_in_the_jobs_order(
    tmp_path: Path, lines: list[dict[str, Any]], pages: int
) -> None:
    draft = ManifestDraft(tmp_path)
    with draft.writing():
        for page in range(pages):
            draft.add(lines[page::pages])
        failed = draft.finish(lambda line: line)
    newest: dict[tuple[int, int], dict[str, Any]] = {}
    for page in range(pages):
        for line in lines[page::pages]:
            picture = line["render"], line["image"]
            newest[picture] = max(newest.get(picture, line), line, key=_rank)
    found = [json.loads(line) for line in (tmp_path / MANIFEST).read_text().splitlines()]
    assert [_rank(line) for line in found] == [_rank(newest[one]) for one in sorted(newest)]
    assert [(line["render"], line["image"]) for line in found] == sorted(newest)
    assert failed == sum(line["error"] is not None for line in newest.values())
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def _rank(line: dict[str, Any]) -> tuple[bool, int]:
    return line["error"] is None, line["generation"]


KILLED = """
import os, signal, sys
from pathlib import Path
from farm_client.manifest_draft import ManifestDraft

draft = ManifestDraft(Path(sys.argv[1]))
with draft.writing():
    draft.add([{"render": 0, "image": 0, "generation": 0, "error": None}])
    os.kill(os.getpid(), signal.SIGKILL)
"""
LINE = {"render": 0, "image": 0, "generation": 0, "error": None}


def test_a_draft_lies_in_any_folder_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a b#?%é"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    draft = ManifestDraft(Path(folder.name))

    def interrupted() -> None:
        with draft.writing():
            draft.add([LINE])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(folder.iterdir()) == []
    killed = subprocess.run([sys.executable, "-c", KILLED, folder])
    assert killed.returncode == -signal.SIGKILL
    assert list(folder.iterdir()) == []


def test_a_draft_leaves_nothing_where_open_files_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError

    draft = ManifestDraft(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        writing = draft.writing()
        writing.__enter__()
    draft.add([LINE])
    assert len(list(tmp_path.iterdir())) == 2
    writing.__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_needs_no_locks(tmp_path: Path) -> None:
    """A network's folder may have none, and then refuses every call for one."""
    draft = ManifestDraft(tmp_path)
    with draft.writing():
        draft.add([LINE])
        opened = Path(f"/proc/{os.getpid()}/fd").iterdir()
        ours = [one for one in opened if str(tmp_path) in os.path.realpath(one)]
        assert len(ours) == 2
        subprocess.run([sys.executable, "-c", LOCK, *ours], check=True)
