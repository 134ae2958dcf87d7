"""The bytes between client and farm, once for threads and once for asyncio."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import httpx2

from farm.addresses import masked
from farm.errors import InvalidInput
from farm_client.address import Address
from farm_client.sync import drive

_PROXIES = ("all_proxy", "http_proxy", "https_proxy")

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


@contextmanager
def environment() -> Iterator[None]:
    """What httpx2 makes of the environment's proxies and certificates, as the user's errors."""
    try:
        yield
    except ImportError:
        raise InvalidInput(
            "names a SOCKS proxy, for which a package is missing",
            field=_proxy_variable("socks"),
            hint="pip install socksio, or unset it",
        ) from None
    except ValueError as error:
        raise InvalidInput(
            f"is not the address of a proxy: {masked(str(error))}",
            field=_proxy_variable(""),
            hint="for example http://proxy:3128",
        ) from None
    except OSError as error:
        field = "SSL_CERT_FILE" if os.environ.get("SSL_CERT_FILE") else "SSL_CERT_DIR"
        raise InvalidInput(
            f"holds no certificates that can be read: {error.strerror or error}",
            field=field,
            hint="name a PEM file with the certificates to trust, or unset it",
        ) from None


def _proxy_variable(scheme: str) -> str:
    """The first of the environment's variables that names a proxy of the scheme."""
    for name, value in os.environ.items():
        if name.lower() in _PROXIES and value.startswith(scheme):
            return name
    return "ALL_PROXY"


def _surroundings(address: Address | None) -> dict[str, Any]:
    """No proxy of the environment stands before a farm on this machine; its certificates count
    where there is TLS."""
    if address is None or not address.local:
        return {}
    no_proxies: dict[str, None] = dict.fromkeys(("all://", "http://", "https://"))
    return {"trust_env": address.url.startswith("https:"), "mounts": no_proxies}


class BlockingWire:
    """For ``Farm``: its coroutines never suspend."""

    def __init__(
        self, transport: httpx2.BaseTransport | None = None, *, address: Address | None = None
    ) -> None:
        self._again = partial(type(self), transport, address=address)
        self._make = partial(httpx2.Client, transport=transport, **_surroundings(address))
        with environment():
            self._client = self._make()
        self._process = os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        return self._again, ()

    def _own(self) -> httpx2.Client:
        """In a process that was forked, one of its own: on a connection that it shares with its
        parent, each would read answers to the other."""
        if self._process != os.getpid():
            with environment():
                self._client = self._make()
            self._process = os.getpid()
        return self._client

    @asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[Opened]:
        with self._own().stream(
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
        self, transport: httpx2.AsyncBaseTransport | None = None, *, address: Address | None = None
    ) -> None:
        self._again = partial(type(self), transport, address=address)
        self._make = partial(httpx2.AsyncClient, transport=transport, **_surroundings(address))
        with environment():
            self._first: httpx2.AsyncClient | None = self._make()
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx2.AsyncClient]
        self._clients = WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return self._again, ()

    def _own(self) -> httpx2.AsyncClient:
        """One for each event loop, since a connection belongs to the loop that has opened it."""
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            with environment():
                client = self._first or self._make()
            self._clients[loop], self._first = client, None
        return client

    @asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[Opened]:
        async with self._own().stream(
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
        await self._own().aclose()


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
