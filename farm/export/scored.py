"""Scores of a job's pictures, in a file, so that a million take no more memory than one."""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from farm.errors import InvalidInput

Values = Mapping[str, Any]  # by column
Score = tuple[int, int, str, Values]  # render, image, hash of the picture's file, and what it got

# Nothing of it outlives the process; locks are what file systems of the network may lack.
_TABLE = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
BEGIN;
CREATE TABLE scores (
    render INTEGER, image INTEGER, sha256 TEXT, place INTEGER, told TEXT,
    PRIMARY KEY (render, image, sha256, place)
) WITHOUT ROWID;
"""


class Scored:
    """Looked up by picture; quick in the order of the job."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self.count = 0

    def add(self, scores: Iterable[Score]) -> None:
        """Of two with the same column the later one counts."""
        rows = (
            (render, image, sha256, place, json.dumps(values))
            for place, (render, image, sha256, values) in enumerate(scores)
        )
        added = self._database.executemany("INSERT INTO scores VALUES (?, ?, ?, ?, ?)", rows)
        self.count += added.rowcount

    def of(self, render: int, image: int, sha256: str) -> dict[str, Any]:
        found = self._database.execute(
            "SELECT told FROM scores WHERE render = ? AND image = ? AND sha256 = ? ORDER BY place",
            (render, image, sha256),
        )
        return {name: value for (told,) in found for name, value in json.loads(told).items()}


@contextmanager
def scored(folder: Path) -> Iterator[Scored]:
    """Without any score yet.

    Raises:
        InvalidInput: the folder cannot be written to, or its disk is full.
    """
    path = folder / ".scores.part"
    path.unlink(missing_ok=True)  # of one that was killed
    try:
        address = f"{path.absolute().as_uri()}?nolock=1"
        with closing(sqlite3.connect(address, isolation_level=None, uri=True)) as database:
            database.executescript(_TABLE)
            yield Scored(database)
    except sqlite3.OperationalError as error:
        raise InvalidInput(f"{folder} cannot hold the scores: {error}", field="output") from None
    finally:
        path.unlink(missing_ok=True)
