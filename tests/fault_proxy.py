"""A TCP proxy on the loopback address that fails in the ways it is told to, while it runs."""

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, Self

CHUNK_BYTES = 64 * 1024
THROTTLED_BYTES = 4096  # of a chunk while there is a throttle, so that it is felt at once
UPSTREAM_SECONDS = 5.0

Side = Literal["client", "server"]


class _Way(NamedTuple):
    """How bytes and connections are treated."""

    kind: Literal["pass", "refuse", "black hole"] = "pass"
    delay: float = 0.0  # seconds, for each chunk in each direction
    jitter: float = 0.0  # seconds more at most
    rate: float = 0.0  # bytes per second and direction; 0 for no limit


class _Cut:
    """Ends a connection when so many bytes have gone towards a side."""

    def __init__(self, side: Side, after: int, times: int, then: Callable[[], None] | None) -> None:
        self.side = side
        self.after = after
        self.times = times
        self.then = then
        self._seen = 0

    def take(self, side: Side, data: bytes) -> bytes | None:
        """What of ``data`` still passes before the cut; None if it is not due yet."""
        if side != self.side or not self.times:
            return None
        left = self.after - self._seen
        if len(data) <= left:
            self._seen += len(data)
            return None
        self._seen = 0
        self.times -= 1
        return data[:left]


class _Link:
    """A client's connection and the one to the server behind it."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.server: socket.socket | None = None
        self.ended = threading.Event()

    def end(self) -> None:
        self.ended.set()
        for side in (self.client, self.server):
            if side is not None:
                with contextlib.suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)


class FaultProxy:
    """Stands before a server; one fault at a time, besides the cuts, until ``heal``.

    Args:
        host: of the server, or the path of its Unix socket.
        port: of the server; left out for a socket.
    """

    def __init__(self, host: str | Path, port: int | None = None) -> None:
        self._upstream = (str(host), port)
        self._way = _Way()
        self._cuts: list[_Cut] = []
        self._links: set[_Link] = set()
        self._changed = threading.Condition()
        self._random = random.Random(0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.cuts = 0  # so many connections were cut by now
        self.accepted = 0  # and so many have come

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="fault-proxy", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # else the accepting thread sleeps on
        self._listener.close()
        self.drop()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    # Faults.

    def heal(self) -> None:
        """Pass everything on, what a black hole has kept first."""
        self._set(_Way())
        with self._changed:
            self._cuts.clear()

    def refuse(self) -> None:
        """New connections are closed at once; the open ones are left alone."""
        self._set(_Way("refuse"))

    def black_hole(self) -> None:
        """Nothing gets through, and nobody is told; new connections are accepted.

        What was sent meanwhile arrives late, as after a partition, if its connection still stands.
        """
        self._set(_Way("black hole"))

    def delay(self, seconds: float, jitter: float = 0.0) -> None:
        self._set(_Way(delay=seconds, jitter=jitter))

    def throttle(self, bytes_per_second: float) -> None:
        self._set(_Way(rate=bytes_per_second))

    def cut(
        self,
        *,
        to_client: int | None = None,
        to_server: int | None = None,
        times: int = 1,
        then: Callable[[], None] | None = None,
    ) -> None:
        """End a connection once so many bytes have gone to the client, or to the server.

        ``to_client=0`` loses a reply: the server has done what it was asked, and nobody hears.

        Args:
            to_client: bytes of the replies that still pass, over all connections.
            to_server: bytes of the requests that still pass.
            times: so many connections, each counted anew.
            then: called before the client can notice.
        """
        with self._changed:
            for side, after in (("client", to_client), ("server", to_server)):
                if after is not None:
                    self._cuts.append(_Cut(side, after, times, then))

    def drop(self) -> None:
        """End all open connections."""
        with self._changed:
            links = list(self._links)
            self._changed.notify_all()
        for link in links:
            link.end()

    @contextlib.contextmanager
    def failing(self, fault: Callable[[], None]) -> Iterator[None]:
        """With a fault inside the block: ``with proxy.failing(proxy.refuse): ...``"""
        fault()
        try:
            yield
        finally:
            self.heal()

    # Connections, each with a thread for each direction.

    def _set(self, way: _Way) -> None:
        with self._changed:
            self._way = way
            self._changed.notify_all()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            if self._way.kind == "refuse":
                client.close()
                continue
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(client)
            with self._changed:
                self._links.add(link)
            threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: _Link) -> None:
        replies = None
        try:
            if self._passes(link):
                link.server = self._connect()
                replies = threading.Thread(
                    target=self._pump, args=(link, link.server, link.client, "client"), daemon=True
                )
                replies.start()
                self._pump(link, link.client, link.server, "server")
        except OSError:
            pass  # the server is not there: its client finds the connection closed
        finally:
            link.end()
            if replies is not None:
                replies.join()
            for side in (link.client, link.server):
                if side is not None:
                    side.close()
            with self._changed:
                self._links.discard(link)

    def _connect(self) -> socket.socket:
        host, port = self._upstream
        if port is not None:
            server = socket.create_connection((host, port), UPSTREAM_SECONDS)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            server = socket.socket(socket.AF_UNIX)
            server.connect(host)
        server.settimeout(None)
        return server

    def _pump(self, link: _Link, source: socket.socket, sink: socket.socket, towards: Side) -> None:
        try:
            while data := source.recv(THROTTLED_BYTES if self._way.rate else CHUNK_BYTES):
                if not self._passes(link):
                    return
                kept = self._cut(towards, data)
                self._pace(len(data))
                sink.sendall(data if kept is None else kept)
                if kept is not None:
                    return
        except OSError:
            pass  # one of the two has gone
        finally:
            link.end()

    def _passes(self, link: _Link) -> bool:
        """Waits out a black hole; False if the connection has ended."""
        with self._changed:
            while self._way.kind == "black hole" and not link.ended.is_set():
                self._changed.wait(0.05)
        return not link.ended.is_set()

    def _cut(self, towards: Side, data: bytes) -> bytes | None:
        with self._changed:
            for cut in self._cuts:
                kept = cut.take(towards, data)
                if kept is not None:
                    self.cuts += 1
                    break
            else:
                return None
        if cut.then is not None:
            cut.then()
        return kept

    def _pace(self, size: int) -> None:
        way = self._way
        seconds = way.delay + way.jitter * self._random.random()
        if way.rate:
            seconds += size / way.rate
        if seconds:
            time.sleep(seconds)
