"""A job's pictures in a local folder, with a manifest."""

import contextlib
import hashlib
import json
import os
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

from farm.errors import InvalidInput
from farm_client.image import ImageFacts, write_whole
from farm_client.output_folder import MANIFEST, OutputFolder
from farm_client.transport import Wire

PARALLEL = 8
PART = ".part"
SIGNED = ".signed.jsonl"  # files that were signed, until the manifest has them

Sign = Callable[[bytes], bytes]  # the bytes of a picture file with content credentials added


class Fetched(NamedTuple):
    """The result of a fetch."""

    folder: Path
    pictures: int  # in the folder now
    skipped: int  # of these, those that were there already
    failed: int  # pictures that the farm could not make
    size: int  # bytes that were fetched

    @property
    def manifest(self) -> Path:
        return self.folder / MANIFEST


class _Place(NamedTuple):
    """Where a picture's line stands."""

    good: bool
    generation: int
    offset: int


class _Signed(NamedTuple):
    """A file that is not what the farm has stored."""

    stored_sha256: str | None  # in the farm
    sha256: str
    size: int


class Fetcher:
    """Fetches several pictures at a time; a file that is there with the right bytes stays.

    Signed files have other bytes every time. What they are stands in the manifest, and in its
    ``stored_sha256`` what they were before.
    """

    def __init__(
        self,
        wire: Wire,
        folder: str | os.PathLike[str],
        job: str,
        parallel: int = PARALLEL,
        progress: Callable[[int], None] | None = None,
        *,
        overwrite: bool = False,
        resume: bool = False,
        sign: Sign | None = None,
    ) -> None:
        self._wire = wire
        self._sign = sign
        self._signed: dict[str, _Signed] = {}  # by file
        self._counting = threading.Lock()
        self._progress = progress
        self._job = job
        self._output = OutputFolder(folder, job)
        self._folder = self._output.path
        self._overwrite, self._resume = overwrite, resume
        self._parallel = parallel
        self._pictures = self._skipped = self._size = 0
        self._places: dict[tuple[int, int], _Place] = {}  # by render and image

    async def fetch(self, images: AsyncIterator[ImageFacts]) -> Fetched:
        self._output.claim(overwrite=self._overwrite, resume=self._resume)
        if self._sign is not None:
            for name in (MANIFEST, SIGNED):
                self._signed.update(_signed_files(self._folder / name))
        draft = self._folder / f".{MANIFEST}.{secrets.token_hex(4)}{PART}"
        crew = self._wire.crew(self._parallel)
        try:
            with draft.open("w+b") as lines:
                async for image in images:
                    self._note(image, lines)
                    if image.error is None and image.file is not None:
                        await crew.give(partial(self._one, image))
                await crew.finish()
                self._write_manifest(lines)
                (self._folder / SIGNED).unlink(missing_ok=True)
                self._output.finish()
        except OSError as error:
            raise InvalidInput(
                f"{self._folder} cannot be written to: {error.strerror}", field="output"
            ) from None
        finally:
            await crew.stop()
            draft.unlink(missing_ok=True)
        failed = sum(not place.good for place in self._places.values())
        return Fetched(self._folder, self._pictures, self._skipped, failed, self._size)

    async def _one(self, image: ImageFacts) -> None:
        assert image.file is not None
        path = self._folder / image.file
        there = self._is_there(path, image)
        size = 0
        if not there:
            data = await image.fetch_bytes()
            size = len(data)
            if self._sign is not None:
                data = self._sign(data)
                sha256 = hashlib.sha256(data).hexdigest()
                self._signed[image.file] = _Signed(image.sha256, sha256, len(data))
            write_whole(path, data)
            if self._sign is not None:
                self._note_signed(image.file)
        with self._counting:
            self._pictures += 1
            self._skipped += there
            self._size += size
            pictures = self._pictures
        if self._progress is not None:
            self._progress(pictures)

    def _is_there(self, path: Path, image: ImageFacts) -> bool:
        if self._sign is None:
            return _matches(path, image.size, image.sha256)
        known = self._signed.get(path.name)
        return (
            known is not None
            and known.stored_sha256 == image.sha256
            and _matches(path, known.size, known.sha256)
        )

    def _note_signed(self, file: str) -> None:
        """So that a fetch that was killed goes on: it is told apart by what was signed."""
        told = {"file": file, **self._signed[file]._asdict()}
        with self._counting, (self._folder / SIGNED).open("a") as out:
            out.write(json.dumps(told) + "\n")

    def _note(self, image: ImageFacts, lines: IO[bytes]) -> None:
        """A picture that was retried while its job is followed comes twice; a good one counts."""
        place = _Place(image.error is None, image.generation, lines.tell())
        picture = image.render, image.image
        self._places[picture] = max(place, self._places.get(picture, place))
        line = {"job": self._job, **image.line()}
        lines.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")

    def _write_manifest(self, lines: IO[bytes]) -> None:
        """Pictures finish in any order; their lines go into the file in the job's order."""
        draft = self._folder / f".{MANIFEST}.{secrets.token_hex(4)}{PART}"
        try:
            with draft.open("wb") as out:
                for _, place in sorted(self._places.items()):
                    lines.seek(place.offset)
                    out.write(self._told(lines.readline()))
            draft.replace(self._folder / MANIFEST)
        finally:
            draft.unlink(missing_ok=True)

    def _told(self, line: bytes) -> bytes:
        """A line of the manifest, of a signed file with what it is now."""
        if self._sign is None:
            return line
        told = json.loads(line)
        signed = self._signed.get(told["file"])
        if signed is not None:
            told |= signed._asdict()
        return json.dumps(told, ensure_ascii=False).encode() + b"\n"


def _signed_files(manifest: Path) -> Iterator[tuple[str, _Signed]]:
    """Those that an earlier fetch has signed."""
    with contextlib.suppress(OSError), manifest.open("rb") as lines:
        for line in lines:
            try:
                told = json.loads(line)
            except ValueError:  # the last line of one that was killed
                continue
            if "stored_sha256" in told:
                yield told["file"], _Signed(told["stored_sha256"], told["sha256"], told["size"])


def _matches(path: Path, size: int | None, sha256: str | None) -> bool:
    try:
        if sha256 is None or path.stat().st_size != size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False
