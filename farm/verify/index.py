"""What a verification remembers of a job: a temporary database, so that memory stays small."""

import contextlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from farm.errors import Unavailable
from farm.job import Receipt
from farm.queue import Failure, Finished
from farm.sinks.protocol import RowId
from farm.store import ListedObject
from farm.verify.difference import Difference, Kind

CACHE_KIB = 8192  # of SQLite; what is looked up lies close together

# A process that dies takes the database along, so nothing has to be safe in it, and the one
# transaction never ends.
_SCHEMA = f"""
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA temp_store = MEMORY;
PRAGMA cache_size = -{CACHE_KIB};
BEGIN;
CREATE TABLE objects (
    key BLOB PRIMARY KEY, size INTEGER NOT NULL, listed INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE pictures (render INTEGER, image INTEGER, PRIMARY KEY (render, image)) WITHOUT ROWID;
CREATE TABLE finished (
    number INTEGER, position INTEGER, generation INTEGER NOT NULL, receipt TEXT NOT NULL,
    PRIMARY KEY (number, position)
) WITHOUT ROWID;
CREATE TABLE lost (number INTEGER PRIMARY KEY, pictures INTEGER NOT NULL);
CREATE TABLE differences (
    place INTEGER PRIMARY KEY, kind TEXT NOT NULL, subject TEXT NOT NULL, expected TEXT NOT NULL,
    found TEXT NOT NULL, task INTEGER
);
"""


class Task(NamedTuple):
    """What the queue says of a task."""

    number: int
    finished: list[Finished]  # its generations that are done, the oldest first
    lost: int  # pictures of its last generation if that ran out of attempts


class JobIndex:
    """A job's objects, listed pictures, tasks and differences; one thread at a time."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def add_objects(self, found: Iterable[ListedObject]) -> None:
        """What lies in the store; quick in the order of the keys."""
        self._database.executemany(
            "INSERT OR IGNORE INTO objects (key, size) VALUES (?, ?)",
            ((_packed(one.key), one.size) for one in found),
        )

    def list_objects(self, keys: Sequence[str]) -> dict[str, int]:
        """Note that something lists these keys, and give the sizes of those that are there."""
        given = [json.dumps(keys)]
        those = "key IN (SELECT CAST(value AS BLOB) FROM json_each(?))"
        found = self._database.execute(f"SELECT key, size FROM objects WHERE {those}", given)
        sizes = {_unpacked(key): size for key, size in found}
        self._database.execute(f"UPDATE objects SET listed = 1 WHERE {those}", given)
        return sizes

    def unlisted(self) -> Iterator[str]:
        """Keys of the objects that nothing lists, in their order."""
        for (key,) in self._database.execute("SELECT key FROM objects WHERE NOT listed"):
            yield _unpacked(key)

    def add_pictures(self, pictures: Iterable[RowId]) -> Set[RowId]:
        """Give those of them that had been added before."""
        given = [json.dumps(list(pictures))]
        render, image = (f"json_extract(given.value, '$[{place}]')" for place in (0, 1))
        known: set[RowId] = set(
            self._database.execute(
                "SELECT render, image FROM json_each(?) AS given CROSS JOIN pictures"
                f" WHERE render = {render} AND image = {image}",
                given,
            )
        )
        self._database.execute(
            f"INSERT OR IGNORE INTO pictures SELECT {render}, {image} FROM json_each(?) AS given",
            given,
        )
        return known

    def add_finished(self, tasks: Iterable[Finished]) -> None:
        self._database.executemany(
            "INSERT INTO finished VALUES (?, ?, ?, ?)",
            (
                (one.number, one.position, one.generation, one.receipt.model_dump_json())
                for one in tasks
            ),
        )

    def add_lost(self, failures: Iterable[Failure]) -> None:
        """Of a task the last one counts."""
        self._database.executemany(
            "INSERT OR REPLACE INTO lost VALUES (?, ?)",
            ((one.number, one.pictures) for one in failures),
        )

    def tasks(self) -> Iterator[Task]:
        """Those that were added, in the order of their numbers."""
        numbers = self._database.execute(
            "SELECT number FROM finished UNION SELECT number FROM lost ORDER BY number"
        )
        for (number,) in numbers:
            lost = self._database.execute("SELECT pictures FROM lost WHERE number = ?", [number])
            yield Task(number, self.finished(number), *(lost.fetchone() or [0]))

    def finished(self, number: int) -> list[Finished]:
        """The generations of a task that are done, the oldest first."""
        found = self._database.execute(
            "SELECT position, generation, receipt FROM finished WHERE number = ? ORDER BY position",
            [number],
        )
        return [
            Finished(position, number, generation, Receipt.model_validate_json(receipt))
            for position, generation, receipt in found
        ]

    def add_difference(self, one: Difference) -> None:
        self._database.execute("INSERT INTO differences VALUES (NULL, ?, ?, ?, ?, ?)", one)

    def differences(self) -> Iterator[Difference]:
        """Those that were added, in that order."""
        found = self._database.execute(
            "SELECT kind, subject, expected, found, task FROM differences ORDER BY place"
        )
        for kind, *facts in found:
            yield Difference(Kind(kind), *facts)


@contextlib.contextmanager
def job_index(folder: Path) -> Iterator[JobIndex]:
    """An empty one in a file without a name, which goes with the process at the latest.

    Args:
        folder: on a disk; made if it is not there. Ten million pictures take about a GiB.

    Raises:
        Unavailable: the folder cannot be written to, or the disk is full.
    """
    with contextlib.closing(_open(folder)) as database:
        try:
            database.executescript(_SCHEMA)
            yield JobIndex(database)
        except sqlite3.Error as error:
            raise _unusable(folder, error) from error


def _packed(key: str) -> bytes:
    """In a folder there may be names of other programs that are not UTF-8."""
    return key.encode(errors="surrogateescape")


def _unpacked(key: bytes) -> str:
    return key.decode(errors="surrogateescape")


def _open(folder: Path) -> sqlite3.Connection:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, path = tempfile.mkstemp(dir=folder)
        os.close(descriptor)
        try:
            # A stream's lines are made by one thread after another.
            return sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        finally:
            os.unlink(path)
    except (OSError, sqlite3.Error) as error:
        raise _unusable(folder, error) from error


def _unusable(folder: Path, error: Exception) -> Unavailable:
    why = error.strerror if isinstance(error, OSError) else error
    return Unavailable(
        f"{folder} cannot hold what is known of the job: {why}",
        hint="free some space, or name a folder on another disk with FARM_DATA",
    )
