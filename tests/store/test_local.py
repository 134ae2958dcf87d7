"""What a disk can do wrong, and what the farm then says."""

import errno
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from farm.errors import StoreError
from farm.store import local, open_store
from farm.store.probing import probe


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permissions"),
        (errno.EIO, ""),
    ],
)
def test_a_failed_write_is_explained_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, hint: str
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    store = open_store(str(tmp_path))
    store.put("folder/first", b"x")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match=f"folder/key: {os.strerror(number)}") as caught:
        store.put("folder/key", b"bytes")
    assert hint in (caught.value.hint or "")
    assert os.listdir(tmp_path / "folder") == ["first"]


@pytest.mark.parametrize("opened", ["open_store(sys.argv[1])", "ReplacingStore(Path(sys.argv[1]))"])
def test_a_write_that_hits_the_limit_leaves_nothing(tmp_path: Path, opened: str) -> None:
    """The kernel's own refusal in the middle of a write, here by a limit on the file's size."""
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from farm.store import open_store\n"
        "from farm.store.local import ReplacingStore\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"{opened}.put('key', bytes(1_000_000))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "StoreError" in ended.stderr
    assert "File too large" in ended.stderr
    assert os.listdir(tmp_path) == []


def test_a_process_that_is_killed_while_it_writes_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from farm.store import open_store\n"
        "store = open_store(sys.argv[1])\n"
        "store.put('folder/first', b'x')\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "store.put('folder/key', bytes(1_000_000))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path / "folder") == ["first"]


def test_a_file_system_without_unnamed_files_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "O_TMPFILE")
    store = open_store(str(tmp_path))
    probe(store)
    assert store.put("folder/key", b"x")
    assert not store.put("folder/key", b"y")
    assert store.get("folder/key") == b"x"
    assert os.listdir(tmp_path / "folder") == ["key"]


def test_what_a_killed_writer_left_goes_with_its_folder(tmp_path: Path) -> None:
    """Where there are no unnamed files, as on NFS; a removed job would keep its disk space."""
    script = (
        "import os, signal, sys\n"
        "from farm.store import open_store\n"
        "store = open_store(sys.argv[1])\n"
        "vars(os).pop('O_TMPFILE', None)\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "store.put('ab/job/data/key', bytes(1_000_000))\n"
    )
    store = open_store(str(tmp_path))
    for key in ("ab/job/data/first", "ab/other/key"):
        store.put(key, b"x")
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert len(os.listdir(tmp_path / "ab/job/data")) == 2
    store.prune("ab/job/")
    assert os.listdir(tmp_path / "ab/job/data") == ["first"]
    store.delete("ab/job/data/first")
    store.prune("ab/job/")
    assert os.listdir(tmp_path / "ab") == ["other"]


def test_a_file_system_without_hard_links_fails_the_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **places: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(StoreError) as caught:
        probe(open_store(str(tmp_path)))
    assert "hard links" in (caught.value.hint or "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_explained(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError) as caught:
        probe(open_store(str(tmp_path / "store")))
    assert "permissions" in (caught.value.hint or "")


def test_a_file_where_the_folder_should_be_is_explained(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("not a folder")
    with pytest.raises(StoreError) as caught:
        open_store(str(tmp_path / "store")).put("a/key", b"x")
    assert "there is a file where a folder is needed" in (caught.value.hint or "")


def test_what_is_put_is_on_the_disk_with_the_names_of_all_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a power cut takes nothing that was acknowledged."""
    synced: list[tuple[str, int]] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        fsync(descriptor)
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor).st_size))

    monkeypatch.setattr(os, "fsync", note)
    store = open_store(str(tmp_path))
    assert store.put("a/b/key", b"bytes")
    names = [name for name, _ in synced]
    assert names[:2] == [str(tmp_path), str(tmp_path / "a")]
    assert names[3:] == [str(tmp_path / "a/b")], "the name is given when the bytes are there"
    assert synced[2][1] == len(b"bytes")
    synced.clear()
    assert store.put("a/b/other", b"bytes")
    assert len(synced) == 2


def test_what_was_put_and_read_is_not_kept_open(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert [store.put("a/key", b"bytes"), store.put("a/key", b"other")] == [True, False]
    assert store.get("a/key") == store.read("a/key", 0, 5) == b"".join(store.stream("a/key"))
    assert [one.key for one in store.list("a/")] == ["a/key"]
    opened = [os.path.realpath(f"/proc/self/fd/{one}") for one in os.listdir("/proc/self/fd")]
    assert [path for path in opened if path.startswith(str(tmp_path))] == []


def test_what_is_deleted_while_a_folder_is_listed_is_left_out(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for name in "abc":
        store.put(f"folder/{name}", b"x")
    listed = store.list("folder/")
    assert next(listed).key == "folder/a"
    store.delete("folder/b")
    assert [one.key for one in listed] == ["folder/c"]


def test_what_is_being_written_is_not_listed(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("folder/key", b"x")
    (tmp_path / "folder" / f"{local._UNFINISHED}0123").write_bytes(b"half")
    assert [entry.key for entry in store.list("")] == ["folder/key"]


def test_the_folder_may_be_a_link_to_another_disk(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "disk")
    store = open_store(str(tmp_path / "store"))
    probe(store)
    assert store.put("a/key", b"x")
    assert (tmp_path / "disk" / "a" / "key").read_bytes() == b"x"


def test_a_replacing_store_keeps_the_last_object_and_nothing_else(tmp_path: Path) -> None:
    store = local.ReplacingStore(tmp_path / "new")
    assert store.put("00000000-00.png", b"first")
    assert store.put("00000000-00.png", b"second")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["00000000-00.png"]
    assert store.get("00000000-00.png") == b"second"


def test_a_list_of_a_large_folder_keeps_little_more_than_the_names(tmp_path: Path) -> None:
    count = 4000
    (tmp_path / "job" / "data").mkdir(parents=True)
    for number in range(count):
        (tmp_path / "job" / "data" / f"{number:08d}-00.png").touch()
    tracemalloc.start()
    try:
        listed = sum(1 for _ in open_store(str(tmp_path)).list("job/"))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert listed == count
    assert most / count < 200, "bytes for each object"
