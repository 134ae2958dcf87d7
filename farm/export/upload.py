"""A data set that lies in a folder, brought to a store: what is there already is compared.

``_UPLOADING`` holds the plan of what is being written, or replaced, until ``_SUCCESS`` is there. So
a call with ``overwrite`` knows what one that was interrupted has left, and no file of another data
set stays among its own.
"""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from farm.errors import Conflict, NotFound
from farm.export.card import CARD, CROISSANT, MANIFEST
from farm.export.export import WHOLE, Plan, groups_of
from farm.export.statistics import STATISTICS
from farm.store import Store

WRITERS = 4  # files at a time; each is held in memory
UPLOADING = "_UPLOADING"


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
        Conflict: another export is there, or something else in the place of a file.
    """
    names = [name for name in _files(folder) if name != WHOLE]
    plan = (folder / WHOLE).read_bytes()
    if overwrite:
        _clear(store, plan, names)
    known = _plan(store, WHOLE) or _plan(store, UPLOADING)
    if known not in (None, plan):
        raise _taken("another export is there")
    if known is None:
        store.put(UPLOADING, plan)
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="upload") as pool:
        sent = list(pool.map(lambda name: _send(folder / name, store, name, overwrite), names))
    sent.append(_send(folder / WHOLE, store, WHOLE, overwrite))
    store.delete(UPLOADING)
    return Uploaded(len(sent), sum(sent))


def _files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _clear(store: Store, own: bytes, names: Iterable[str]) -> None:
    """Remove an export's marks, whole or not, and its files; of our own those that it has no more.

    Of another all of them, so that a call that goes on, without ``overwrite``, finds nothing in
    its way.
    """
    plans = [plan for mark in (WHOLE, UPLOADING) if (plan := _plan(store, mark)) is not None]
    if plans:
        store.put(UPLOADING, plans[0])
        store.delete(WHOLE)
    kept = set() if set(plans) - {own} else set(names)
    for group in {name for plan in plans for name in groups_of(plan) or ()}:
        store.delete_many([entry.key for entry in store.list(f"{group}/") if entry.key not in kept])
    if not kept:
        store.delete_many([CARD, CROISSANT, MANIFEST, STATISTICS])
    store.delete(UPLOADING)


def _plan(store: Store, mark: str) -> bytes | None:
    try:
        return store.get(mark)
    except NotFound:
        return None


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
        raise _taken(f"{key} is there with other bytes")
    store.delete(key)
    return store.put(key, data)


def _taken(message: str) -> Conflict:
    return Conflict(message, field="--output", hint="name another place, or give --overwrite")
