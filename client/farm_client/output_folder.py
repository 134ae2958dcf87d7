"""A folder that receives the pictures of one job and of no other."""

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

from farm.disk import refused
from farm.errors import InvalidInput
from farm.job import is_job_id
from farm_client.image import write_whole

MANIFEST = "manifest.jsonl"
MARK = ".farm-unfinished.json"  # there until the manifest is; says whose pictures lie here
_PICTURES = re.compile(r"\d{8,}-\d{2,}\.(png|webp|jpg|safetensors|u16)")
# Only beside a manifest: dates look like that too.
_SHARDS = re.compile(r"\d{8}(\.\d+)?\.(tar|parquet)")


class OutputFolder:
    """Args:
    folder: made if it is missing.
    owner: the job's id; another word for what has none.
    """

    def __init__(self, folder: str | os.PathLike[str], owner: str) -> None:
        self.path = Path(folder).expanduser()
        self._owner = owner

    def claim(
        self, *, overwrite: bool = False, resume: bool = False, **facts: Any
    ) -> dict[str, Any]:
        """Make it ready for the owner's pictures; other files of the user stay.

        Args:
            overwrite: remove the pictures and the manifest of another job.
            resume: keep what lies there, although nothing says whose it is.
            facts: to be found by the next claim, should this one not come to its end.

        Returns:
            The facts of the owner's unfinished claim that this one goes on with.

        Raises:
            InvalidInput: another job's pictures lie there, or it cannot be written to.
        """
        if overwrite and resume:
            raise InvalidInput("give --overwrite or --resume, not both", field="output")
        self._make()
        holds = self._holds()
        known: dict[str, Any] = {}
        if overwrite:
            self._clear()
        else:
            self._check(holds, resume)
            known = self._mark()
        told = {**facts, **known, "owner": self._owner}
        try:
            # Whole or not at all: a full disk must not take the mark that is there.
            write_whole(self.path / MARK, json.dumps(told).encode())
        except OSError as error:
            raise refused(self.path, error, "output") from None
        return known

    def check(self, *, resume: bool = False) -> None:
        """Raises ``InvalidInput`` where ``claim`` would, and changes nothing."""
        if self.path.is_dir():
            self._check(self._holds(), resume)

    def try_out(self) -> None:
        """Raises ``InvalidInput`` where it cannot be made or written to; leaves nothing behind."""
        new = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self._make()
        for path in new:
            path.rmdir()

    def _check(self, holds: str | None, resume: bool) -> None:
        """A job's pictures are the same whenever they are fetched, so its own never stand in the
        way; those of ``farm render`` may be others every time."""
        mine = holds == self._owner and (resume or is_job_id(self._owner))
        unknown = resume and holds is not None and not is_job_id(holds)
        if holds is not None and not mine and not unknown:
            raise self._taken(holds)

    @property
    def whole(self) -> bool:
        """Whether a claim has come to its end, and none has begun since."""
        return (self.path / MANIFEST).exists() and not (self.path / MARK).exists()

    def finish(self) -> None:
        """All pictures are there, and the manifest."""
        (self.path / MARK).unlink(missing_ok=True)

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise InvalidInput(f"{self.path} is a file", field="output") from None
        except OSError as error:
            raise refused(self.path, error, "output", "made") from None
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise InvalidInput(f"{self.path} is not writable", field="output")

    def _holds(self) -> str | None:
        """Whose pictures lie there; empty if nothing says so, None if there are none."""
        if mark := self._mark():
            return str(mark.get("owner", ""))
        with contextlib.suppress(OSError), (self.path / MANIFEST).open("rb") as lines:
            if first := lines.readline():
                return _job_of(first)
        return "" if self._pictures() else None

    def _mark(self) -> dict[str, Any]:
        try:
            found = json.loads((self.path / MARK).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _pictures(self) -> list[Path]:
        listed = (self.path / MANIFEST).exists() or (self.path / MARK).exists()
        return [
            path
            for path in self.path.iterdir()
            if _PICTURES.fullmatch(path.name) or (listed and _SHARDS.fullmatch(path.name))
        ]

    def _clear(self) -> None:
        for path in (*self._pictures(), self.path / MANIFEST, self.path / MARK):
            path.unlink(missing_ok=True)

    def _taken(self, holds: str) -> InvalidInput:
        whose = f"the pictures of job {holds}" if is_job_id(holds) else "pictures of the farm"
        resume = "" if is_job_id(holds) else ", --resume keeps those that are right"
        return InvalidInput(
            f"{self.path} has {whose}",
            field="output",
            hint=f"name another folder; --overwrite removes them{resume}",
        )


def _job_of(line: bytes) -> str:
    try:
        return str(json.loads(line)["job"])
    except (ValueError, KeyError, TypeError):
        return ""
