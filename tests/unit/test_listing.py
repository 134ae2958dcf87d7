"""Pages of pictures, the next one on its way while one is read, and what is left half way."""

import asyncio
import hashlib
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from farm.errors import NotFound
from farm_client import AsyncFarm, Farm
from farm_client.async_job import AsyncJob
from farm_client.transport import AsyncWire, BlockingWire

JOB = "j0-01m848b6zxgnjbpp0f506dqmht"
PICTURE = {
    "render": 0, "image": 0, "file": "00000000-00.png", "url": "/x", "seed": 1, "sha256": None,
    "spec": {},
}  # fmt: skip


async def left_early(job: AsyncJob, folder: Path, asked: asyncio.Event) -> None:
    images = job.images()
    assert (await anext(images)).render == 0
    await asked.wait()
    await images.aclose()


async def cancelled_while_it_waits(job: AsyncJob, folder: Path, asked: asyncio.Event) -> None:
    task = asyncio.create_task(job.fetch(folder))
    await asked.wait()
    while not (folder / str(PICTURE["file"])).exists():  # then it waits for the second page
        assert not task.done()
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("read", [left_early, cancelled_while_it_waits])
def test_a_page_that_nothing_waits_for_is_no_longer_asked_for(
    read: Callable[[AsyncJob, Path, asyncio.Event], Awaitable[None]], tmp_path: Path
) -> None:
    async def main() -> None:
        asked = asyncio.Event()

        async def answer(request: httpx2.Request) -> httpx2.Response:
            if request.url.path == "/x":
                return httpx2.Response(200, content=b"picture")
            if request.url.path.endswith(JOB):
                return httpx2.Response(200, json={"id": JOB, "state": "running"})
            if request.url.params["after"] != "0.0.0":
                asked.set()
                await asyncio.Event().wait()
            page = {"images": [PICTURE], "next": "1.0.0", "state": "running"}
            return httpx2.Response(200, json=page)

        wire = AsyncWire(httpx2.MockTransport(answer))
        async with AsyncFarm("http://farm:8400", wire=wire) as farm:
            await read(farm.job(JOB), tmp_path, asked)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def page_of(data: bytes) -> dict[str, Any]:
    """One picture of a shard."""
    shard = {
        "shard": "00000000.tar", "generation": 0, "size": len(data), "url": "/x",
        "sha256": hashlib.sha256(data).hexdigest(),
    }  # fmt: skip
    picture = PICTURE | {"shard": shard["shard"], "offset": 0, "size": 1}
    return {"images": [picture], "shards": [shard], "next": "1.0.0", "state": "done"}


def test_a_shard_that_nothing_waits_for_is_not_read_to_its_end(tmp_path: Path) -> None:
    begun, ended = threading.Event(), threading.Event()

    def parts() -> Iterator[bytes]:
        while not ended.wait(0.01):
            begun.set()
            yield b"."

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/x":
            return httpx2.Response(200, content=parts())
        if request.url.path.endswith(JOB):
            return httpx2.Response(200, json={"id": JOB, "state": "running"})
        if request.url.params["after"] == "0.0.0":
            page = page_of(b"a shard") | {"state": "running"}
            return httpx2.Response(200, json=page)
        assert begun.wait(60)
        refusal = {"code": "not_found", "message": "the job was removed"}
        return httpx2.Response(404, json={"error": refusal})

    farm = Farm("http://farm:8400", wire=BlockingWire(httpx2.MockTransport(answer)))
    try:
        with pytest.raises(NotFound, match="removed"):
            farm.job(JOB).fetch(tmp_path, shards=True)
        deadline = time.monotonic() + 60
        while list(tmp_path.glob(".00000000.tar.*")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        ended.set()


class QuickWire(BlockingWire):
    async def sleep(self, seconds: float) -> None:
        pass


@pytest.mark.parametrize("ranges", [True, False])
def test_a_shard_that_is_cut_off_again_and_again_arrives_whole(
    tmp_path: Path, ranges: bool
) -> None:
    data, asked = random.Random(1).randbytes(1000), []

    def parts(start: int, stop: int) -> Iterator[bytes]:
        yield data[start:stop]
        if stop < len(data):
            raise httpx2.ReadError("cut off")

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/x":
            asked.append(request.headers.get("range", ""))
            stop = 100 * len(asked)
            if ranges and asked[-1]:
                start = int(asked[-1].removeprefix("bytes=").partition("-")[0])
                return httpx2.Response(206, content=parts(start, stop))
            return httpx2.Response(200, content=parts(0, stop))
        if request.url.path.endswith(JOB):
            return httpx2.Response(200, json={"id": JOB, "state": "done"})
        page = page_of(data)
        if request.url.params["after"] != "0.0.0":
            page |= {"images": []}
        return httpx2.Response(200, json=page)

    wire = QuickWire(httpx2.MockTransport(answer))
    farm = Farm("http://farm:8400", wire=wire, patience=1.0)
    farm.job(JOB).fetch(tmp_path, shards=True)
    assert (tmp_path / "00000000.tar").read_bytes() == data
    assert asked == ["", *(f"bytes={start}-999" for start in range(100, 1000, 100))]
