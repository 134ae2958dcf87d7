"""A data set that lies in a folder, brought to a store: what is there already is compared."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from farm.errors import Conflict, NotFound
from farm.export.export import WHOLE, Plan, groups_of
from farm.store import Store

WRITERS = 4  # files at a time; each is held in memory


class Uploaded(NamedTuple):
    files: int
    sent: int  # of these, those that were not there


def holds(store: Store, plan: Plan) -> bool:
    """Whether this very data set is whole there."""
    try:
        return store.get(WHOLE) == plan.to_json().encode()
    except NotFound:
        return False


def upload(folder: Path, store: Store, *, overwrite: bool = False) -> Uploaded:
    """Bring every file of a whole data set to the store, and ``_SUCCESS`` last.

    Args:
        folder: as ``export`` has left it.
        store: with nothing else at its address.
        overwrite: replace what another export has written there.

    Raises:
        Conflict: something else lies in the place of a file.
    """
    names = [name for name in _files(folder) if name != WHOLE]
    if overwrite:
        _clear(store, {*names, WHOLE})
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="upload") as pool:
        sent = list(pool.map(lambda name: _send(folder / name, store, name, overwrite), names))
    sent.append(_send(folder / WHOLE, store, WHOLE, overwrite))
    return Uploaded(len(sent), sum(sent))


def _files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _clear(store: Store, names: set[str]) -> None:
    """Another export's mark, and its files that this one does not have."""
    try:
        groups = groups_of(store.get(WHOLE)) or ()
    except NotFound:
        return
    store.delete(WHOLE)
    for group in groups:
        for entry in list(store.list(f"{group}/")):
            if entry.key not in names:
                store.delete(entry.key)


def _send(path: Path, store: Store, key: str, overwrite: bool) -> bool:
    data = path.read_bytes()
    if store.put(key, data):
        return True
    digest = hashlib.sha256()
    for piece in store.stream(key):
        digest.update(piece)
    if digest.digest() == hashlib.sha256(data).digest():
        return False
    if not overwrite:
        raise Conflict(
            f"{key} is there with other bytes",
            field="--output",
            hint="name another place, or give --overwrite",
        )
    store.delete(key)
    return store.put(key, data)
