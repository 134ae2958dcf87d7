"""Request bodies are read in bounded memory."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

from starlette.requests import Request

from farm.gateway.bodies import lines, pieces
from farm.gateway.body_memory import BodyMemory
from farm.job import MAX_LINE_BYTES, MAX_PIECE_LINES


class Body:
    """A request that never holds more than a part of itself."""

    def __init__(self, parts: AsyncIterator[bytes]) -> None:
        self._parts = parts
        self.scope: dict[str, Any] = {"state": {}}
        self.app = SimpleNamespace(state=SimpleNamespace(body_memory=BodyMemory(2**28)))

    def stream(self) -> AsyncIterator[bytes]:
        return self._parts


def request(parts: AsyncIterator[bytes]) -> Request:
    return cast(Request, Body(parts))


def test_lines_do_not_depend_on_how_the_body_was_cut() -> None:
    text = b'\xef\xbb\xbf{"prompt": "a"}\n\n{"prompt": "b"}\r\n{"bad\n{"prompt": "c"}'

    async def read(size: int) -> list[tuple[Any, int | None, bool]]:
        async def parts() -> AsyncIterator[bytes]:
            for start in range(0, len(text), size):
                yield text[start : start + size]

        return [
            (entry.data, entry.line, entry.error is None)
            async for entries in lines(request(parts()))
            for entry in entries
        ]

    found = [asyncio.run(read(size)) for size in (1, 5, 1000)]
    assert found[0] == found[1] == found[2]
    assert [(line, good) for _, line, good in found[0]] == [
        (1, True), (3, True), (4, False), (5, True),
    ]  # fmt: skip


def test_a_long_body_is_read_in_flat_memory() -> None:
    async def parts() -> AsyncIterator[bytes]:
        block = b'{"prompt": "the same line again and again"}\n' * 500
        for _ in range(60):
            yield block
        for _ in range(30):
            yield b"x" * 2**20  # and one line of 30 MB
        yield b"\n" + block

    async def read() -> tuple[int, int, int]:
        count = most = bad = 0
        async for group in pieces(request(parts())):
            count += len(group)
            most = max(most, len(group))
            bad += sum(entry.error is not None for entry in group)
        return count, most, bad

    tracemalloc.start()
    try:
        count, most, bad = asyncio.run(read())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (count, most, bad) == (30_501, MAX_PIECE_LINES, 1)
    assert peak < 12 * 2**20


def test_pieces_are_cut_at_the_same_lines_however_the_body_came() -> None:
    sizes = [10, 3 * 2**20, MAX_LINE_BYTES - 20, MAX_LINE_BYTES + 1, *([2**17] * 80), *([9] * 4500)]
    text = b"\n".join(b'{"prompt": "%s"}' % (b"x" * min(size, 2**20)) for size in sizes)

    async def read(size: int) -> list[tuple[int, int | None]]:
        async def parts() -> AsyncIterator[bytes]:
            for start in range(0, len(text), size):
                yield text[start : start + size]

        return [(len(group), group[0].line) async for group in pieces(request(parts()))]

    found = [asyncio.run(read(size)) for size in (2**12, 2**16, 2**20 + 7, len(text))]
    assert found[0] == found[1] == found[2] == found[3]
    assert sum(count for count, _ in found[0]) == len(sizes)
    assert len(found[0]) == 4
