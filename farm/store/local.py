"""A store in a folder: one file per object."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from farm.disk import HINTS, put_whole
from farm.errors import NotFound, StoreError
from farm.store.protocol import STREAM_BYTES, ListedObject, check_key, check_prefix, whole_range

# No key's segment starts with a dot, so what is being written is never seen as an object.
_UNFINISHED = ".writing-"

# What open(2) and link(2) fail with where the system or the disk has no unnamed files.
_NO_UNNAMED = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}

_HINTS = {
    **HINTS,
    errno.EPERM: "the file system refuses it, perhaps for want of hard links: use another folder",
    errno.EOPNOTSUPP: "the file system has no hard links: use a folder on another one",
    errno.EEXIST: "there is a file where a folder is needed",
    errno.ENOTDIR: "there is a file where a folder is needed",
    errno.EISDIR: "there is a folder where a file is needed",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
}


class LocalStore:
    """Objects appear by link(2), which fails if the name is taken: all or nothing, once."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self.url = self._root.as_uri()

    @property
    def made(self) -> bool:
        """Whether its folder is there already; the first object makes it."""
        return self._root.is_dir()

    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> bool:
        path = self._path(key)
        with _errors(f"cannot write {path}"):
            if path.exists():
                return False
            _make_folder(path.parent)
            with _folder(path.parent) as folder:
                try:
                    _write_unnamed(folder, path.name, data)
                except FileExistsError:
                    return False
                except OSError as error:
                    if error.errno not in _NO_UNNAMED:
                        raise
                    if not _write_named(folder, path.name, data):
                        return False
                os.fsync(folder)
            return True

    def get(self, key: str) -> bytes:
        path = self._path(key)
        with _errors(f"cannot read {path}", key):
            return path.read_bytes()

    def read(self, key: str, offset: int, size: int) -> bytes:
        path = self._path(key)
        with _errors(f"cannot read {path}", key), path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        return whole_range(data, key, size)

    def stream(self, key: str) -> Iterator[bytes]:
        path = self._path(key)
        with _errors(f"cannot read {path}", key), path.open("rb") as file:
            while piece := file.read(STREAM_BYTES):
                yield piece

    def size(self, key: str) -> int | None:
        path = self._path(key)
        with _errors(f"cannot read {path}"):
            try:
                return path.stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def list(self, prefix: str) -> Iterator[ListedObject]:
        check_prefix(prefix)
        folder, slash, start = prefix.rpartition("/")
        with _errors(f"cannot list {self._root}"):
            yield from _walk(self._root / folder, folder + slash, start)

    def folders(self, prefix: str) -> Iterator[str]:
        check_prefix(prefix)
        with _errors(f"cannot list {self._root}"):
            for name in _names(self._root / prefix):
                if name.endswith("/"):
                    yield prefix + name

    def jobs(self) -> Iterator[str]:
        """Ids of the jobs that have a record, without a look at their pictures."""
        with _errors(f"cannot list {self._root}"):
            yield from sorted(path.parent.name for path in self._root.glob("*/*/job.json"))

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _errors(f"cannot delete {path}"), contextlib.suppress(NotADirectoryError):
            path.unlink(missing_ok=True)

    def delete_many(self, keys: Sequence[str]) -> None:
        for key in keys:  # one after the other: the kernel locks the folder for each
            self.delete(key)

    def prune(self, prefix: str) -> None:
        check_prefix(prefix)
        for folder, _, names in os.walk(self._root / prefix, topdown=False):
            with contextlib.suppress(OSError):  # it is not empty
                for name in names:  # left by writers that were killed, where files need a name
                    if name.startswith(_UNFINISHED):
                        os.unlink(os.path.join(folder, name))
                os.rmdir(folder)

    def signed_url(self, key: str, *, seconds: int, filename: str | None = None) -> str | None:
        return None

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)


class ReplacingStore(LocalStore):
    """A folder of the user's own, in which a later run replaces an earlier one's files."""

    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> bool:
        path = self._path(key)
        with _errors(f"cannot write {path}"):
            _make_folder(path.parent)
            put_whole(path, data)
        return True


@contextlib.contextmanager
def _errors(what: str, key: str | None = None) -> Iterator[None]:
    """The operating system's errors as the farm's; with a key, a missing file is ``NotFound``."""
    try:
        yield
    except OSError as error:
        if key is not None and isinstance(error, FileNotFoundError | NotADirectoryError):
            raise NotFound(f"no object {key} in the store") from None
        hint = _HINTS.get(error.errno or 0)
        raise StoreError(f"{what}: {error.strerror or error}", hint=hint) from error


def _write_unnamed(folder: int, name: str, data: bytes) -> None:
    """Name the file when it is whole; a process that is killed before leaves nothing behind."""
    unnamed = getattr(os, "O_TMPFILE", None)
    if unnamed is None:
        raise OSError(errno.EOPNOTSUPP, "no unnamed files on this system")
    descriptor = os.open(".", unnamed | os.O_WRONLY, 0o666, dir_fd=folder)
    with open(descriptor, "wb") as file:
        _write(file, data)
        # Only with a folder given does Python let link(2) follow the name under /proc.
        os.link(f"/proc/self/fd/{descriptor}", name, src_dir_fd=folder, dst_dir_fd=folder)


def _write_named(folder: int, name: str, data: bytes) -> bool:
    """The same where a file needs a name from the start; False if ``name`` is taken."""
    unfinished = f"{_UNFINISHED}{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        with open(os.open(unfinished, flags, 0o666, dir_fd=folder), "wb") as file:
            _write(file, data)
        os.link(unfinished, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished, dir_fd=folder)
    return True


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _make_folder(folder: Path) -> None:
    """Like ``mkdir -p``, and the new names survive a power cut."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    with _folder(folder) as descriptor:
        os.fsync(descriptor)


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _names(folder: Path, start: str = "") -> list[str]:
    """Of the entries whose names begin so, in the order of S3: a folder's ends in a slash, and so
    "a-b" comes before "a/b". Nothing else is kept of them, since there may be millions."""
    with (
        contextlib.suppress(FileNotFoundError, NotADirectoryError),
        os.scandir(folder) as entries,
    ):
        named = (
            f"{entry.name}/" if entry.is_dir() else entry.name
            for entry in entries
            if not entry.name.startswith(".")
        )
        return sorted(name for name in named if name.startswith(start))
    return []


def _walk(folder: Path, above: str, start: str) -> Iterator[ListedObject]:
    for name in _names(folder, start):
        if name.endswith("/"):
            yield from _walk(folder / name, above + name, "")
        else:
            with contextlib.suppress(FileNotFoundError):
                yield ListedObject(above + name, os.stat(f"{folder}/{name}").st_size)
