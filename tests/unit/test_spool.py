"""Pictures that wait for their shard."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fake_engine import INFO

from farm.errors import StoreError
from farm.formats.encoding import encode
from farm.formats.manifest import ManifestRow
from farm.formats.picture_record import PictureRecord
from farm.job import Format
from farm.sinks.protocol import TaskPlace
from farm.sinks.registry import Sinks
from farm.sinks.spool import Spool
from farm.spec import RenderRequest
from farm.store import open_store


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


def test_a_task_that_ends_while_a_picture_is_looked_at_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file and a descriptor of each would fill the disk of a worker that lives for months."""
    scratch = tmp_path / "scratch"
    sink = Sinks(open_store(str(tmp_path / "store")), scratch).get("webdataset")
    place = TaskPlace("webdataset", "j", 0, 0, Format.PNG, "data/", None)
    spec = RenderRequest(prompt="a").resolve(INFO, seed=0)
    record = PictureRecord("j", 0, 0, 0, spec, "n", Format.PNG)
    picture = encode(np.zeros((32, 32, 3), np.uint8), record.facts(np.zeros((4, 4))), Format.PNG)
    stored_row = PictureRecord.stored_row
    for ends in (True, False):

        def read(self: PictureRecord, file: str, data: bytes, *, ends: bool = ends) -> ManifestRow:
            if ends:
                sink.forget(place)
            return stored_row(self, file, data)

        monkeypatch.setattr(PictureRecord, "stored_row", read)
        if ends:
            with pytest.raises(StoreError, match="their task is over"):
                sink.store_picture(place, record, picture)
            assert not [path for path in scratch.rglob("*") if path.is_file()]
        else:  # the task has come back
            sink.store_picture(place, record, picture)
            assert [path for path in scratch.rglob("*") if path.is_file()]
