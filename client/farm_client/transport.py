"""The bytes between client and farm, once for threads and once for asyncio."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple, Protocol

import httpx2

from farm_client.sync import drive

Work = Callable[[], Coroutine[Any, Any, None]]


class Call(NamedTuple):
    """One HTTP request; ``url`` is absolute."""

    method: str
    url: str
    headers: Mapping[str, str]
    content: bytes | None = None
    seconds: float = 60.0  # without a byte


class Opened(NamedTuple):
    """An answer whose body is still to be read."""

    status: int
    headers: Mapping[str, str]
    parts: AsyncIterator[bytes]


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class Crew(Protocol):
    """Does several things at a time; the first failure is raised by the next call."""

    async def give(self, work: Work) -> None: ...
    async def finish(self) -> None: ...
    async def stop(self) -> None: ...


class Wire(Protocol):
    def open(self, call: Call) -> AbstractAsyncContextManager[Opened]: ...
    async def sleep(self, seconds: float) -> None: ...
    def crew(self, size: int) -> Crew: ...
    async def close(self) -> None: ...


class BlockingWire:
    """For ``Farm``: its coroutines never suspend."""

    def __init__(
        self, transport: httpx2.BaseTransport | None = None, *, proxies: bool = True
    ) -> None:
        self._client = httpx2.Client(transport=transport, trust_env=proxies)

    @asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[Opened]:
        with self._client.stream(
            call.method,
            call.url,
            headers=dict(call.headers),
            content=call.content,
            timeout=httpx2.Timeout(call.seconds, connect=10.0),
        ) as response:

            async def parts() -> AsyncIterator[bytes]:
                for part in response.iter_bytes():
                    yield part

            yield Opened(response.status_code, response.headers, parts())

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def crew(self, size: int) -> Crew:
        return _Threads(size)

    async def close(self) -> None:
        self._client.close()


class _Threads:
    def __init__(self, size: int) -> None:
        self._pool = ThreadPoolExecutor(size)
        self._room = threading.Semaphore(2 * size)
        self._failure: BaseException | None = None

    async def give(self, work: Work) -> None:
        self._check()
        self._room.acquire()
        self._pool.submit(lambda: drive(work())).add_done_callback(self._done)

    async def finish(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=self._failure is not None)
        self._check()

    async def stop(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _done(self, future: Future[None]) -> None:
        self._room.release()
        if not future.cancelled() and (failure := future.exception()) is not None:
            self._failure = self._failure or failure

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure


class AsyncWire:
    """For ``AsyncFarm``."""

    def __init__(
        self, transport: httpx2.AsyncBaseTransport | None = None, *, proxies: bool = True
    ) -> None:
        self._client = httpx2.AsyncClient(transport=transport, trust_env=proxies)

    @asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[Opened]:
        async with self._client.stream(
            call.method,
            call.url,
            headers=dict(call.headers),
            content=call.content,
            timeout=httpx2.Timeout(call.seconds, connect=10.0),
        ) as response:
            yield Opened(response.status_code, response.headers, response.aiter_bytes())

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def crew(self, size: int) -> Crew:
        return _Tasks(size)

    async def close(self) -> None:
        await self._client.aclose()


class _Tasks:
    def __init__(self, size: int) -> None:
        self._room = asyncio.Semaphore(size)
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    async def give(self, work: Work) -> None:
        await self._room.acquire()
        self._check()
        task = asyncio.ensure_future(work())
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def finish(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._check()

    async def stop(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _done(self, task: Awaitable[None]) -> None:
        assert isinstance(task, asyncio.Task)
        self._tasks.discard(task)
        self._room.release()
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failure = self._failure or failure

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
