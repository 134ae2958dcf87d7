"""``manifest.jsonl`` while it is being written: lines come in any order, and some twice."""

import errno
import json
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from farm_client.output_folder import MANIFEST

# Nothing of it outlives the process.
_TABLE = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
BEGIN;
CREATE TABLE places (
    render INTEGER, image INTEGER, good INTEGER, generation INTEGER, start INTEGER,
    PRIMARY KEY (render, image)
) WITHOUT ROWID;
"""
# A picture that was retried while its job was followed comes twice; a good one counts.
_ADD = """
INSERT INTO places VALUES (?, ?, ?, ?, ?)
ON CONFLICT (render, image) DO UPDATE SET good = excluded.good, generation = excluded.generation,
    start = excluded.start
WHERE (excluded.good, excluded.generation) >= (good, generation)
"""


class ManifestDraft:
    """Lines lie in a file as they came, and in a database where each one begins, so that ten
    million lines take no more memory than ten.

    Args:
        folder: of the manifest.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Everything else is called in here; what is left of the draft is removed."""
        draft, database = self._path(), self._path()
        try:
            with draft.open("w+b") as self._lines, closing(_open(database)) as self._places:
                for path in (draft, database):  # so that a process that is killed leaves nothing
                    with suppress(OSError):  # not every system removes open files
                        path.unlink()
                yield
        except sqlite3.OperationalError as error:  # such as that the disk is full
            raise OSError(errno.EIO, str(error)) from error
        finally:
            draft.unlink(missing_ok=True)
            database.unlink(missing_ok=True)

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        self._places.executemany(_ADD, map(self._write, lines))

    def finish(self, told: Callable[[bytes], bytes]) -> int:
        """Write the manifest, in the job's order.

        Args:
            told: what stands there for a line.

        Returns:
            How many pictures failed.
        """
        draft = self._path()
        try:
            with draft.open("wb") as out:
                places = self._places.execute("SELECT start FROM places ORDER BY render, image")
                for (start,) in places:
                    self._lines.seek(start)
                    out.write(told(self._lines.readline()))
                out.flush()
                os.fsync(out.fileno())  # who finds it does not ask the farm again
            draft.replace(self._folder / MANIFEST)
        finally:
            draft.unlink(missing_ok=True)
        (failed,) = self._places.execute("SELECT count(*) FROM places WHERE NOT good").fetchone()
        return int(failed)

    def _write(self, line: Mapping[str, Any]) -> tuple[int, int, bool, int, int]:
        start = self._lines.tell()
        self._lines.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        return line["render"], line["image"], line["error"] is None, line["generation"], start

    def _path(self) -> Path:
        return self._folder / f".{MANIFEST}.{os.getpid()}.{secrets.token_hex(4)}.part"


def _open(path: Path) -> sqlite3.Connection:
    """Without locks, which file systems of the network may lack: the file is this process's own."""
    address = f"{path.absolute().as_uri()}?nolock=1"
    database = sqlite3.connect(address, isolation_level=None, uri=True)
    database.executescript(_TABLE)
    return database
