"""Runs: pictures that lie beside each other in a shard, which one request reads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from functools import partial
from itertools import islice
from typing import NamedTuple, TypeVar

from farm_client.connection import Connection
from farm_client.image import ImageFacts
from farm_client.inputs import digest
from farm_client.models import Page, Picture, Shard
from farm_client.sync import drive

RUN_BYTES = 4 << 20  # read with one request; a larger picture is a run of its own
GAP_BYTES = 64 << 10  # between two pictures of a run; skipping it would take another request

Item = TypeVar("Item")
Result = TypeVar("Result")


class Run(NamedTuple):
    """At least one picture, in the order of its shard."""

    pictures: tuple[Picture, ...]
    shard: Shard | None = None  # None: one picture, at an address of its own

    @property
    def range(self) -> range:
        """Of the shard's bytes."""
        first, last = self.pictures[0], self.pictures[-1]
        return range(_offset(first), _offset(last) + _size(last))


def runs(page: Page, pictures: Iterable[Picture]) -> Iterator[Run]:
    """Those of the page's pictures that did not fail, in as few runs as their order allows."""
    held: list[Picture] = []
    around: Shard | None = None
    for picture in pictures:
        if picture.error is not None:
            continue
        shard = page.shard_of(picture)
        if held and not (shard is around and _joins(held, picture)):
            yield Run(tuple(held), around)
            held = []
        around = shard
        held.append(picture)
        if shard is None:
            yield Run((picture,))
            held = []
    if held:
        yield Run(tuple(held), around)


def _joins(held: list[Picture], picture: Picture) -> bool:
    gap = _offset(picture) - _offset(held[-1]) - _size(held[-1])
    together = _offset(picture) + _size(picture) - _offset(held[0])
    return 0 <= gap <= GAP_BYTES and together <= RUN_BYTES


def read_files(connection: Connection, run: Run) -> list[tuple[Picture, bytes]]:
    """The run's pictures and their files, on the blocking transport."""
    return list(zip(run.pictures, drive(read_run(connection, run)), strict=True))


async def read_run(connection: Connection, run: Run) -> list[bytes]:
    """The files of a run's pictures. Where a range is not what was stored, each picture is asked
    for by itself, as often as that can help."""
    if run.shard is None:
        return [await ImageFacts(connection, picture).fetch_bytes() for picture in run.pictures]
    data = await connection.persist(partial(_read, connection, run.shard, run.range))
    files = []
    for picture in run.pictures:
        begin = _offset(picture) - run.range.start
        file = data[begin : begin + _size(picture)]
        if digest(file) != picture.sha256:
            file = await ImageFacts(connection, picture).fetch_bytes()
        files.append(file)
    return files


async def _read(connection: Connection, shard: Shard, wanted: range) -> bytes:
    """Nothing where ranges are not known, as behind some proxies: the whole shard would come for
    each of its runs."""
    held = bytearray()
    async with connection.object(shard.url, wanted, gateway_url=shard.gateway_url) as opened:
        if opened.status == 206:
            async for part in opened.parts:
                held += part
    return bytes(held)


def map_ahead(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Like ``pool.map``, with that many calls begun before their results are asked for."""
    left = iter(items)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in islice(left, ahead):
            waiting.append(pool.submit(function, item))
        while waiting:
            result = waiting.popleft().result()
            for item in islice(left, 1):
                waiting.append(pool.submit(function, item))
            yield result
    finally:
        for future in waiting:
            future.cancel()


def _offset(picture: Picture) -> int:
    assert picture.offset is not None
    return picture.offset


def _size(picture: Picture) -> int:
    assert picture.size is not None
    return picture.size
