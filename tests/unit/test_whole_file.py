"""A file of the client that is there whole or not at all."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from farm_client.image import whole_file

KILLED = """
import os, signal, sys
from pathlib import Path
from farm_client.image import whole_file

with whole_file(Path(sys.argv[1])) as out:
    out.write(b"x" * 2**20)
    out.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(params=["unnamed", "named"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the disk has files without a name."""
    if request.param == "named":
        opened = os.open

        def refuse(path: Any, flags: int, *given: Any, **more: Any) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "no unnamed files here")
            return opened(path, flags, *given, **more)

        monkeypatch.setattr(os, "open", refuse)
    return str(request.param)


def test_it_takes_the_place_of_another(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    path.write_bytes(b"before")
    with whole_file(path) as out:
        out.write(b"after")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after"
    assert os.listdir(tmp_path) == [path.name]
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_one_that_was_not_finished_is_nowhere(kind: str, tmp_path: Path) -> None:
    def break_off() -> None:
        with whole_file(tmp_path / "shard.tar") as out:
            out.write(b"half")
            assert len(os.listdir(tmp_path)) == (kind == "named")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert os.listdir(tmp_path) == []


def test_a_process_that_is_killed_leaves_nothing_of_it(tmp_path: Path) -> None:
    try:
        os.close(os.open(tmp_path, os.O_TMPFILE | os.O_RDWR))
    except OSError:
        pytest.skip("this disk has no files without a name")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "shard.tar")])
    assert killed.returncode == -9
    assert os.listdir(tmp_path) == []
