"""A job's pictures in a local folder, with a manifest."""

import contextlib
import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError
from functools import partial
from io import BufferedRandom
from pathlib import Path
from typing import Any, NamedTuple

from farm.disk import refused
from farm.errors import InvalidInput, StoreError
from farm_client.connection import Connection
from farm_client.image import file_name, whole_file, write_whole
from farm_client.manifest_draft import ManifestDraft
from farm_client.models import Page, Picture, Shard
from farm_client.output_folder import MANIFEST, OutputFolder
from farm_client.runs import Run, read_run, runs
from farm_client.transport import Work

PARALLEL = 8
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


class _Signed(NamedTuple):
    """A file that is not what the farm has stored."""

    stored_sha256: str | None  # in the farm
    sha256: str
    size: int


class Fetcher:
    """Fetches several files at a time; one that is there with the right bytes stays.

    Signed files have other bytes every time. What they are stands in the manifest, and in its
    ``stored_sha256`` what they were before.
    """

    def __init__(
        self,
        connection: Connection,
        folder: str | os.PathLike[str],
        job: str,
        parallel: int = PARALLEL,
        progress: Callable[[int], None] | None = None,
        *,
        overwrite: bool = False,
        resume: bool = False,
        sign: Sign | None = None,
        shards: bool = False,
    ) -> None:
        if sign is not None and shards:
            raise InvalidInput("shards cannot be signed", hint="sign their pictures: farm export")
        self._connection = connection
        self._sign = sign
        self._shards = shards
        self._signed: dict[str, _Signed] = {}  # by file
        self._counting = threading.Lock()
        self._progress = progress
        self._job = job
        self._output = OutputFolder(folder, job)
        self._folder = self._output.path
        self._overwrite, self._resume = overwrite, resume
        self._parallel = parallel
        self._pictures = self._skipped = self._size = 0
        self._stopped = False  # threads cannot be cancelled, and a shard takes a while

    async def fetch(self, pages: AsyncIterator[Page]) -> Fetched:
        self._output.claim(overwrite=self._overwrite, resume=self._resume)
        if self._sign is not None:
            for name in (MANIFEST, SIGNED):
                self._signed.update(_signed_files(self._folder / name))
        draft = ManifestDraft(self._folder)
        crew = self._connection.wire.crew(self._parallel)
        try:
            with draft.writing():
                async for page in pages:
                    draft.add(self._line(page, picture) for picture in page.pictures)
                    for work in self._works(page):
                        await crew.give(work)
                await crew.finish()
                failed = draft.finish(self._told)
                (self._folder / SIGNED).unlink(missing_ok=True)
                self._output.finish()
        except OSError as error:
            raise refused(self._folder, error, "output") from None
        finally:
            self._stopped = True
            await crew.stop()
        return Fetched(self._folder, self._pictures, self._skipped, failed, self._size)

    def _works(self, page: Page) -> Iterator[Work]:
        """What there is to do for a page."""
        pictures = [one for one in page.pictures if one.error is None and one.file is not None]
        if self._shards:
            held = Counter((one.generation, one.shard) for one in pictures)
            for place, shard in page.shards.items():
                if held[place]:
                    yield partial(self._shard, shard, held[place])
            pictures = [one for one in pictures if page.shard_of(one) is None]
        for run in runs(page, pictures):
            yield partial(self._run, page, run)

    def _line(self, page: Page, picture: Picture) -> dict[str, Any]:
        line = {"job": self._job, **picture.line()}
        if picture.file is not None:  # an export writes files of these names
            line["file"] = file_name(picture.file)
        if self._shards and (shard := page.shard_of(picture)):
            line |= {"shard": shard.file, "offset": picture.offset}
        return line

    async def _shard(self, shard: Shard, pictures: int) -> None:
        path = self._folder / file_name(shard.file)
        there = _matches(path, shard.size, shard.sha256)
        if not there:
            with whole_file(path) as out:
                # On a slow line a shard takes longer than any patience, so each attempt goes
                # on where the last was cut off.
                await self._connection.persist(partial(self._append, shard, out), out.tell)
        self._count(pictures, there=there, size=0 if there else shard.size)

    async def _append(self, shard: Shard, out: BufferedRandom) -> None:
        rest = range(out.tell(), shard.size)
        wanted = rest if rest and rest.start else None
        async with self._connection.object(
            shard.url, wanted, gateway_url=shard.gateway_url
        ) as opened:
            if wanted is None or opened.status != 206:
                _empty(out)
            async for part in opened.parts:
                if self._stopped:
                    raise CancelledError
                out.write(part)
        out.seek(0)
        if hashlib.file_digest(out, "sha256").hexdigest() != shard.sha256:
            _empty(out)
            raise StoreError(f"{shard.file} arrived with other bytes than were stored")

    async def _run(self, page: Page, run: Run) -> None:
        missing = [one for one in run.pictures if not self._is_there(one)]
        self._count(len(run.pictures) - len(missing), there=True)
        for some in runs(page, missing):
            files = await read_run(self._connection, some)
            for picture, data in zip(some.pictures, files, strict=True):
                self._keep(picture, data)

    def _keep(self, picture: Picture, data: bytes) -> None:
        name, size = file_name(picture.file), len(data)
        if self._sign is not None:
            data = self._sign(data)
            sha256 = hashlib.sha256(data).hexdigest()
            self._signed[name] = _Signed(picture.sha256, sha256, len(data))
        write_whole(self._folder / name, data)
        if self._sign is not None:
            self._note_signed(name)
        self._count(1, there=False, size=size)

    def _count(self, pictures: int, *, there: bool, size: int = 0) -> None:
        with self._counting:
            self._pictures += pictures
            self._skipped += there and pictures
            self._size += size
            total = self._pictures
        if self._progress is not None:
            self._progress(total)

    def _is_there(self, picture: Picture) -> bool:
        path = self._folder / file_name(picture.file)
        if self._sign is None:
            return _matches(path, picture.size, picture.sha256)
        known = self._signed.get(path.name)
        return (
            known is not None
            and known.stored_sha256 == picture.sha256
            and _matches(path, known.size, known.sha256)
        )

    def _note_signed(self, file: str) -> None:
        """So that a fetch that was killed goes on: it is told apart by what was signed."""
        told = {"file": file, **self._signed[file]._asdict()}
        with self._counting, (self._folder / SIGNED).open("a") as out:
            out.write(json.dumps(told) + "\n")

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


def _empty(file: BufferedRandom) -> None:
    file.seek(0)
    file.truncate()


def _matches(path: Path, size: int | None, sha256: str | None) -> bool:
    try:
        if sha256 is None or path.stat().st_size != size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False
