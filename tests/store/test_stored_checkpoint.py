"""Checkpoints in a store: put there once, fetched once by the processes of a host."""

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from farm.checkpoints import host, stored
from farm.checkpoints.inspect import inspect_checkpoint
from farm.checkpoints.references import built_in
from farm.cli.app import run
from farm.errors import FarmError, InvalidCheckpoint, StoreError
from farm.store import Store, open_store

SHIPPED = built_in()["shapes-64"]
INFO = inspect_checkpoint(SHIPPED).info
PIECE = 512 * 1024  # bytes; some ten pieces

# A process that fetches a checkpoint, notes what it reads, and does something at the n-th read.
FETCHER = """
import os, resource, signal, sys, time
from farm.checkpoints.inspect import inspect_checkpoint
from farm.errors import FarmError
from farm.store import local

reference, trace, deed, at = *sys.argv[1:4], int(sys.argv[4])
get = local.LocalStore.get

def noted(store, key):
    global at
    with open(trace, "a") as out:
        print(key, file=out)
    at -= 1
    if at == 0 and deed == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "dawdle":
        time.sleep(0.05)
    return get(store, key)

local.LocalStore.get = noted
if deed == "fill":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at, at))
try:
    print(inspect_checkpoint(reference).info.name)
except FarmError as error:
    sys.exit(str(error))
"""


class Host:
    """A store with a checkpoint, and the processes of a host that wants it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "store"
        self.store = open_store(str(self.folder))
        self.reference = stored.push(
            self.store.url, SHIPPED, INFO.id, INFO.revision, piece_bytes=PIECE
        )
        self.data = folder / "data"
        self._trace = folder / "trace"

    def start(self, deed: str = "", at: int = 0) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", FETCHER, str(self.reference), str(self._trace), deed, str(at)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"FARM_DATA": str(self.data), "PATH": "/bin"},
        )

    def end(self, process: "subprocess.Popen[str]") -> tuple[int, str]:
        out, error = process.communicate(timeout=120)
        return process.returncode, (out or error).strip()

    @property
    def reads(self) -> Counter[str]:
        lines = self._trace.read_text().splitlines()
        return Counter(line for line in lines if "/pieces/" in line)

    @property
    def pieces(self) -> list[str]:
        return [one.key for one in self.store.list("checkpoints/") if "/pieces/" in one.key]


@pytest.fixture
def there(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_checkpoint_is_the_same_after_its_way_through_a_store(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_DATA", str(tmp_path / "data"))
    reference = stored.push(store.url, SHIPPED, INFO.id, INFO.revision, piece_bytes=PIECE)
    found = inspect_checkpoint(str(reference))
    assert found.info == INFO
    assert found.path.is_relative_to(tmp_path / "data")
    for one in store.list("checkpoints/"):  # it does not need the store any more
        store.delete(one.key)
    assert inspect_checkpoint(str(reference)).path == found.path


@pytest.mark.slow
def test_the_processes_of_a_host_fetch_each_piece_once(there: Host) -> None:
    processes = [there.start("dawdle") for _ in range(3)]
    assert [there.end(one) for one in processes] == [(0, INFO.name)] * 3
    assert set(there.reads.values()) == {1}
    assert set(there.reads) == set(there.pieces)


@pytest.mark.slow
def test_after_a_kill_another_process_goes_on_and_reads_nothing_twice(there: Host) -> None:
    assert len(there.pieces) > 8
    status, _ = there.end(there.start("die", at=7))
    assert status == -signal.SIGKILL
    assert there.end(there.start()) == (0, INFO.name)
    again = [key for key, times in there.reads.items() if times > 1]
    assert len(again) == 1, "the one that it died in"
    assert set(there.reads) == set(there.pieces)


@pytest.mark.slow
def test_a_disk_that_is_full_gives_a_line_and_later_it_goes_on(there: Host) -> None:
    status, error = there.end(there.start("fill", at=3 * PIECE))
    assert status == 1
    assert f"cannot be kept in {there.data}" in error
    assert "\n" not in error
    assert there.end(there.start()) == (0, INFO.name)


def test_room_is_looked_for_first(there: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_DATA", str(there.data))
    free = host.SPARE_BYTES + 10**6
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12 - free, free)
    )
    read: list[str] = []
    monkeypatch.setattr(stored, "_fetch_file", lambda *told: read.append(told[3].path))
    with pytest.raises(InvalidCheckpoint) as refused:
        inspect_checkpoint(str(there.reference))
    assert "needs 5." in str(refused.value)
    assert "FARM_DATA" in str(refused.value)
    assert read == []


def spoil_piece(folder: Path) -> None:
    piece = max(folder.glob("pieces/*"), key=lambda one: one.stat().st_size)
    data = bytearray(piece.read_bytes())
    data[-1] ^= 1
    piece.write_bytes(data)


def spoil_index(folder: Path) -> None:
    (folder / "index.json").write_text("{}")


def swap_files(folder: Path) -> None:
    """Each file is whole, but not what its name says."""
    index = json.loads((folder / "index.json").read_text())
    files = {one["path"]: one for one in index["files"]}
    one, other = files["vqvae/config.json"], files["transformer/config.json"]
    one["path"], other["path"] = other["path"], one["path"]
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("spoil", [spoil_piece, spoil_index, swap_files])
def test_what_is_damaged_in_the_store_is_not_used(
    there: Host, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    monkeypatch.setenv("FARM_DATA", str(there.data))
    [folder] = there.folder.glob("checkpoints/*/*")
    spoil(folder)
    for _ in range(2):
        with pytest.raises(StoreError, match="damaged"):
            inspect_checkpoint(str(there.reference))


def test_what_was_damaged_on_the_disk_is_fetched_again(
    there: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a loss of power, for instance, before the fetch had ended."""
    monkeypatch.setenv("FARM_DATA", str(there.data))
    there.end(there.start("die", at=10))
    [part] = (there.data / "checkpoints" / "fetched").glob("*.part")
    torn = min((file for file in part.rglob("*.json")), key=lambda file: file.stat().st_size)
    torn.write_bytes(b"\0" * torn.stat().st_size)
    with pytest.raises(StoreError, match="damaged"):
        inspect_checkpoint(str(there.reference))
    assert inspect_checkpoint(str(there.reference)).info == INFO


@pytest.mark.parametrize(
    "reference",
    [
        "s3://bucket/shapes-64@0123456789ab",
        "s3://bucket/checkpoints/shapes-64",
        "s3://bucket/checkpoints/../x@0123456789ab",
        "ftp://host/checkpoints/shapes-64@0123456789ab",
        "https://host/model",
    ],
)
def test_a_reference_that_is_none_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    monkeypatch.setenv("FARM_DATA", str(tmp_path))
    with pytest.raises(FarmError) as refused:
        inspect_checkpoint(reference)
    assert "\n" not in str(refused.value)


def test_a_pushed_checkpoint_has_the_name_that_the_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FARM_DATA", str(tmp_path / "data"))
    for _ in range(2):
        assert run(["checkpoint", "push", "shapes-64", "--store", str(tmp_path / "store")]) == 0
    first, second = capsys.readouterr().out.split()
    assert first == second == f"file://{tmp_path}/store/checkpoints/{INFO.name}"
    assert run(["checkpoint", "inspect", first]) == 0
    told = capsys.readouterr()
    assert f"{INFO.name}: fetching 5." in told.err
    assert inspect_checkpoint(first).info == INFO
    missing = first[:-12] + "0" * 12
    assert run(["checkpoint", "inspect", missing]) == 2
    assert "farm checkpoint push puts it there" in capsys.readouterr().err
