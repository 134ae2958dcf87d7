"""Checkpoints in a store: put there once, fetched once by each host.

A file lies there in pieces, each under the sha256 of its bytes, so that an upload or a fetch that
was killed goes on where it stopped, in the memory that a piece takes.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from farm.checkpoints import host
from farm.checkpoints.layout import deciding_files, digest
from farm.errors import InvalidCheckpoint, NotFound, StoreError
from farm.store import Store, keys, open_store
from farm.store.protocol import check_key
from farm.stored_record import StoredRecord

PIECE_BYTES = 64 * 2**20
FOLDER = "/checkpoints/"  # in a reference, between the store's address and the checkpoint

_REFERENCE = re.compile(r"(?P<name>[\w./-]+)@(?P<revision>[0-9a-f]{12}|[0-9a-f]{40})")


class StoredFile(BaseModel):
    """A file of a checkpoint."""

    model_config = ConfigDict(frozen=True)

    path: str  # in the checkpoint's folder
    size: int  # bytes
    sha256: str
    pieces: tuple[str, ...]  # the sha256 of each, in order


class CheckpointIndex(StoredRecord):
    """Written last: with it a checkpoint is whole."""

    piece_bytes: int
    files: tuple[StoredFile, ...]


class Reference(NamedTuple):
    """``STORE/checkpoints/NAME@REVISION``; STORE is the address of a store."""

    store: str
    name: str
    revision: str

    @classmethod
    def parse(cls, text: str) -> "Reference":
        parts = urlsplit(text)
        base, _, last = parts.path.rpartition(FOLDER)
        found = _REFERENCE.fullmatch(last)
        if found is None:
            raise InvalidCheckpoint(
                f"{parts.path[-80:]} does not name a checkpoint in a store",
                hint=f"write it as farm checkpoint push says it: s3://…{FOLDER}NAME@REVISION",
            )
        store = parts._replace(path=base or "/").geturl()
        return cls(store, found["name"], found["revision"])

    def __str__(self) -> str:
        parts = urlsplit(self.store if "://" in self.store else Path(self.store).resolve().as_uri())
        path = f"{parts.path.rstrip('/')}{FOLDER}{self.name}@{self.revision}"
        return parts._replace(path=path).geturl()


def push(
    url: str, folder: Path, name: str, revision: str, *, piece_bytes: int = PIECE_BYTES
) -> Reference:
    """Put a checkpoint into the store at ``url``; what is there already is not sent again.

    Args:
        folder, name, revision: of a checkpoint that was inspected.

    Raises:
        StoreError: the store fails.
    """
    store, prefix = open_store(url), keys.checkpoint(name, revision)
    roots = [folder / "model_index.json", folder / "farm.json"]
    files = []
    for file in (*filter(Path.is_file, roots), *deciding_files(folder)):
        whole, pieces = hashlib.sha256(), []
        for data in _pieces(file, piece_bytes):
            whole.update(data)
            pieces.append(hashlib.sha256(data).hexdigest())
            key = keys.checkpoint_piece(name, revision, pieces[-1])
            if store.size(key) != len(data):
                store.put(key, data)
        path = file.relative_to(folder).as_posix()
        files.append(
            StoredFile(
                path=path, size=file.stat().st_size, sha256=whole.hexdigest(), pieces=tuple(pieces)
            )
        )
    index = CheckpointIndex(piece_bytes=piece_bytes, files=tuple(files))
    store.put(f"{prefix}index.json", index.model_dump_json().encode())
    return Reference(url, name, revision)


def fetch(text: str, data: Path) -> tuple[Path, tuple[str, str]]:
    """The folder of a checkpoint in a store, fetched once into the farm's folder on this host; and
    its name and revision.

    Raises:
        InvalidCheckpoint: it is not there, is damaged, or does not fit on the disk.
        StoreError: the store fails.
    """
    reference = Reference.parse(text)
    what = f"{reference.name}@{reference.revision[:12]}"
    cache = data / "checkpoints" / "fetched"
    folder = cache / f"{reference.name.replace('/', '--')}@{reference.revision}"
    try:
        with host.alone(cache / f"{folder.name}.lock", what):
            if not folder.is_dir():
                _fetch(reference, folder.with_name(f"{folder.name}.part"), what).rename(folder)
    except OSError as error:
        raise InvalidCheckpoint(
            f"{what} cannot be kept in {cache}: {error.strerror}",
            hint="free some, or name a folder on another disk with FARM_DATA",
        ) from None
    return folder, (reference.name, reference.revision)


def _fetch(reference: Reference, part: Path, what: str) -> Path:
    """Fill a folder, in which an earlier call may have been killed."""
    store = open_store(reference.store)
    index = _index(store, reference, what)
    part.mkdir(exist_ok=True)
    needed = sum(file.size for file in index.files) - host.bytes_in(part)
    host.check_room(part, needed, what, "FARM_DATA")
    with host.told(what, needed, lambda: host.bytes_in(part)):
        for file in index.files:
            _fetch_file(store, reference, index.piece_bytes, file, part / check_key(file.path))
    for file in index.files:
        with (part / file.path).open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != file.sha256:
                (part / file.path).unlink()
                raise _damaged(what, file.path)
    if len(reference.revision) == 12 and digest(part) != reference.revision:
        raise _damaged(what, "index.json")
    return part


def _fetch_file(
    store: Store, reference: Reference, piece_bytes: int, file: StoredFile, to: Path
) -> None:
    if to.is_file():
        return
    to.parent.mkdir(parents=True, exist_ok=True)
    begun = to.with_name(f"{to.name}.begun")
    with begun.open("ab") as out:
        done = out.tell() // piece_bytes
        out.truncate(done * piece_bytes)
        for sha256 in file.pieces[done:]:
            data = store.get(keys.checkpoint_piece(reference.name, reference.revision, sha256))
            if hashlib.sha256(data).hexdigest() != sha256:
                raise _damaged(reference.name, file.path)
            out.write(data)
    begun.rename(to)


def _index(store: Store, reference: Reference, what: str) -> CheckpointIndex:
    key = f"{keys.checkpoint(reference.name, reference.revision)}index.json"
    try:
        return CheckpointIndex.model_validate_json(store.get(key))
    except NotFound:
        raise InvalidCheckpoint(
            f"{store.url} has no checkpoint {what}", hint="farm checkpoint push puts it there"
        ) from None
    except ValidationError:
        raise _damaged(what, "index.json") from None


def _pieces(file: Path, size: int) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while data := stream.read(size):
            yield data


def _damaged(what: str, path: str) -> StoreError:
    return StoreError(
        f"{what}: {path} in the store is damaged: its hash is another one",
        hint="delete what the store has of the checkpoint, then farm checkpoint push it again",
    )
