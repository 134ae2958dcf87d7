"""A finished picture."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from io import BufferedRandom
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farm.errors import FarmError, RenderError, StoreError, from_dict
from farm_client import display
from farm_client.connection import Connection
from farm_client.inputs import digest
from farm_client.models import Picture
from farm_client.pillow import PillowImage, open_picture
from farm_client.sync import drive

if TYPE_CHECKING:
    import builtins

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")


class ImageFacts:
    """One picture of a job; ``render`` and ``image`` say which. Its facts are attributes, its bytes
    are fetched when they are asked for."""

    def __init__(self, connection: Connection, told: Picture) -> None:
        self._connection = connection
        self._told = told

    @property
    def told(self) -> Picture:
        """Everything that the farm says of it."""
        return self._told

    @property
    def render(self) -> int:
        return self._told.render

    @property
    def image(self) -> int:
        return self._told.image

    @property
    def generation(self) -> int:
        """0, or the retry that made it."""
        return self._told.generation

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What its row said besides the parameters, such as ``id``."""
        return self._told.metadata

    @property
    def seed(self) -> int:
        """The seed that gives this picture again, rendered alone."""
        return self._told.seed

    @property
    def prompt(self) -> str | None:
        """What was asked for; None where embeddings were given."""
        return self._told.spec.get("prompt")

    @property
    def spec(self) -> dict[str, Any]:
        return self._told.spec

    @property
    def width(self) -> int | None:
        return self._told.width

    @property
    def height(self) -> int | None:
        return self._told.height

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to the request or its pictures, such as a prompt cut short."""
        return self._told.notes

    @property
    def error(self) -> FarmError | None:
        """Why there is no picture."""
        return None if self._told.error is None else from_dict(self._told.error)

    @property
    def sha256(self) -> str | None:
        return self._told.sha256

    @property
    def size(self) -> int | None:
        return self._told.size

    @property
    def file(self) -> str | None:
        """The picture's own file name in its job."""
        return None if self._told.file is None else file_name(self._told.file)

    def line(self) -> dict[str, Any]:
        """Its line in ``manifest.jsonl``."""
        return self._told.line()

    async def fetch_bytes(self) -> bytes:
        if self.error is not None or self._told.url is None:
            raise self.error or RenderError("there is no picture")
        return await self._connection.persist(partial(self._fetch, self._told.url))

    async def _fetch(self, url: str) -> bytes:
        held = bytearray()
        async with self._connection.object(url) as opened:
            async for part in opened.parts:
                held += part
        data = bytes(held)
        if self.sha256 is not None and digest(data) != self.sha256:
            raise StoreError(f"{self.file} arrived with other bytes than were stored")
        return data

    async def _save(self, path: str | os.PathLike[str]) -> Path:
        target = Path(path)
        if target.is_dir() or str(path).endswith(("/", os.sep)):
            target = target / (self.file or "")
        data = await self.fetch_bytes()
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, data)
        return target

    def __repr__(self) -> str:
        state = "failed" if self.error else f"{self.width}x{self.height}"
        return f"<{type(self).__name__} {self.render}-{self.image} {state} seed={self.seed}>"


class AsyncImage(ImageFacts):
    """One picture of a job, for asynchronous code."""

    async def save(self, path: str | os.PathLike[str] = ".") -> Path:
        """Write the file; into a folder under its own name, else under the path itself."""
        return await self._save(path)

    async def read(self) -> bytes:
        """The picture's file; raises the picture's own error where there is none."""
        return await self.fetch_bytes()

    async def bytes(self) -> bytes:
        """The same as ``read``."""
        return await self.fetch_bytes()

    async def pil(self) -> PillowImage:
        """The picture; needs Pillow."""
        return open_picture(await self.fetch_bytes())


class Image(ImageFacts):
    """One picture of a job."""

    def save(self, path: str | os.PathLike[str] = ".") -> Path:
        """Write the file; into a folder under its own name, else under the path itself."""
        return drive(self._save(path))

    def read(self) -> bytes:
        """The picture's file; raises the picture's own error where there is none."""
        return drive(self.fetch_bytes())

    def bytes(self) -> bytes:
        """The same as ``read``."""
        return self.read()

    def pil(self) -> PillowImage:
        """The picture; needs Pillow."""
        return open_picture(self.read())

    def figure(self) -> str:
        """HTML with the picture in it, and its prompt."""
        if self.error is not None:
            return display.figure(None, self.prompt or "", self.error.message)
        return display.figure(self.read(), self.prompt or f"{self.render}-{self.image}")

    def _repr_html_(self) -> str:
        return self.figure()

    def _repr_png_(self) -> "builtins.bytes | None":
        """For notebooks that show no HTML."""
        if self.error is not None:
            return None
        data = self.read()
        return data if display.media_type(data) == "image/png" else None


def file_name(told: str | None) -> str:
    """A file's name as the farm tells it, which names nothing outside of a folder."""
    if told is None or not _NAME.fullmatch(told):
        raise FarmError(f"the farm names a file {str(told)[:80]!r}, which is not a file name")
    return told


def write_whole(path: Path, data: bytes) -> None:
    """The file is there complete or not at all."""
    with draft_of(path) as draft:
        draft.write_bytes(data)
        draft.replace(path)


@contextmanager
def whole_file(path: Path) -> Iterator[BufferedRandom]:
    """A file to write, which takes its place when it is whole. Before that it has no name, where
    the system knows such files, so that a process that is killed leaves nothing of it."""
    with draft_of(path) as draft:
        unnamed = _unnamed_file(path.parent)
        with unnamed or draft.open("w+b") as out:
            yield out
            if unnamed:
                out.flush()
                _name(out, draft)
        draft.replace(path)


def _unnamed_file(folder: Path) -> BufferedRandom | None:
    """None where the system or the disk does not have them."""
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666)
    except (AttributeError, OSError):
        return None
    file = open(descriptor, "w+b")  # noqa: SIM115  its user closes it
    if not os.path.exists(_place(file)):
        file.close()
        return None
    return file


def _place(file: BufferedRandom) -> str:
    return f"/proc/self/fd/{file.fileno()}"


def _name(file: BufferedRandom, path: Path) -> None:
    path.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Only with a folder given does Python let link(2) follow the name under /proc.
        os.link(_place(file), path.name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Where a file is written before it takes its place; an error leaves nothing there."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield draft
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
