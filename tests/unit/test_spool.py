"""Pictures that wait for their shard."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from farm.sinks.spool import Spool


def test_what_several_threads_add_is_read_by_another_process(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "task")
    contents = {f"{number:08d}-00.u16": bytes([number]) * number for number in range(200)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(spool.add, contents, contents.values()))
    assert Spool(tmp_path / "task").read() == contents
    Spool(tmp_path / "task").remove()
    assert list(tmp_path.iterdir()) == []


def test_nothing_waits_at_first(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "task")
    assert spool.read() == {}
    spool.remove()


def test_a_record_that_a_killed_process_has_torn_is_left_out(tmp_path: Path) -> None:
    """Wherever it is cut; what the next process adds is read."""
    Spool(tmp_path / "whole").add("first", b"1" * 50)
    Spool(tmp_path / "task").add("first", b"1" * 50)
    (whole,) = (tmp_path / "whole").iterdir()
    data = whole.read_bytes()
    (file,) = (tmp_path / "task").iterdir()
    for cut in range(len(data)):
        file.write_bytes(data + data[:cut].replace(b"first", b"torn!"))
        other = Spool(tmp_path / "task")
        other.add("second", b"2")
        assert other.read() == {"first": b"1" * 50, "second": b"2"}


def test_a_write_that_the_disk_takes_a_part_of_is_an_error_and_spoils_nothing(
    tmp_path: Path,
) -> None:
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from farm.sinks.spool import Spool\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "spool = Spool(Path(sys.argv[1]))\n"
        "spool.add('small', b'x')\n"
        "try:\n"
        "    spool.add('large', bytes(200_000))\n"
        "except OSError:\n"
        "    spool.add('after', b'y')\n"
        "    print(sorted(spool.read().items()))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "task")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.strip() == "[('after', b'y'), ('small', b'x')]"


@pytest.mark.parametrize("name", ["a", "ü"])
def test_names_and_empty_contents_come_back(tmp_path: Path, name: str) -> None:
    spool = Spool(tmp_path / "task")
    spool.add(name, b"")
    assert spool.read() == {name: b""}
