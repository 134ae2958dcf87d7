"""Connections that send or read too slowly, and more of them than one address should hold.

uvicorn closes a connection that is idle between two requests. It waits for ever for the rest of a
header or of a body, and takes connections until there are no file descriptors left: the slowloris
attack, which needs no key. Here every connection has deadlines, and a new one takes the place of
the oldest one without a request.
"""

import asyncio
import json
import resource
from collections import Counter
from typing import Any, NamedTuple

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from farm.settings import GatewaySettings

CHECK_SECONDS = 1.0
BODY_SECONDS = 10.0  # over which the rate of a body is taken
LINGER_SECONDS = 30.0  # for the rest of a body that is answered already; it is thrown away
RESERVED_DESCRIPTORS = 256  # for Redis, the store, the sandbox and files
UNKNOWN = "unknown"  # the address of a client behind a unix socket


class Limits(NamedTuple):
    connections: int
    per_address: int
    header_seconds: float
    least_rate: int  # bytes/s of a body
    read_seconds: float  # without a byte of the answer taken

    @classmethod
    def of(cls, settings: GatewaySettings) -> "Limits":
        """What the settings and the process's file descriptors allow.

        Behind a proxy all connections come from the proxy's address, which counts its clients.
        """
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        room = hard - RESERVED_DESCRIPTORS if hard != resource.RLIM_INFINITY else 2**20
        most = max(min(settings.max_connections, room), 1)
        each = most if settings.behind_proxy else settings.max_connections_per_address
        return cls(
            most, min(each, most), settings.header_seconds, settings.least_rate,
            settings.read_seconds,
        )  # fmt: skip


class Connections:
    """All connections of one server, oldest first."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._open: dict[GuardedProtocol, str] = {}
        self._by_address: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def admit(self, connection: "GuardedProtocol", address: str) -> bool:
        """Whether there is room for one more, if need be in the place of an idle one."""
        if self._by_address[address] >= self.limits.per_address:
            if not self._close_idle(address):
                return False
        elif len(self._open) >= self.limits.connections and not self._close_idle(None):
            return False
        self._open[connection] = address
        self._by_address[address] += 1
        if self._timer is None:
            self._timer = connection.loop.call_later(CHECK_SECONDS, self._check, connection.loop)
        return True

    def forget(self, connection: "GuardedProtocol") -> None:
        address = self._open.pop(connection, None)
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    def _close_idle(self, address: str | None) -> bool:
        """Close the oldest connection without a request; one that never made any goes first."""
        idle = None
        for connection, its in self._open.items():
            if (address is None or its == address) and connection.idle:
                if connection.cycle is None:
                    idle = connection
                    break
                idle = idle or connection
        if idle is None:
            return False
        idle.transport.abort()
        self.forget(idle)
        return True

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        # First: an error with one connection must not end the deadlines of all.
        self._timer = loop.call_later(CHECK_SECONDS, self._check, loop) if self._open else None
        now = loop.time()
        for connection in list(self._open):
            connection.check(now)


class GuardedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with time-outs for headers, bodies and answers that are not read."""

    def __init__(self, *args: Any, table: Connections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._table = table
        self._header_since: float | None = None
        self._body_since = 0.0
        self._body_bytes = 0
        self._answered_at = 0.0
        self._unread_since = 0.0
        self._unread_bytes = 0

    @property
    def idle(self) -> bool:
        """No request is being read or answered."""
        return self.conn.their_state is h11.IDLE and (
            self.cycle is None or self.cycle.response_complete
        )

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._header_since = self.loop.time()
        if not self._table.admit(self, self.client[0] if self.client else UNKNOWN):
            self._refuse(503, "busy", "too many connections are open; try again in a moment")

    def connection_lost(self, exc: Exception | None) -> None:
        self._table.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._body_bytes += len(data)
        if self._header_since is None and self.idle:
            self._header_since = self.loop.time()
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._header_since = None
            self._body_since, self._body_bytes = self.loop.time(), 0

    def on_response_complete(self) -> None:
        self._answered_at = self.loop.time()
        super().on_response_complete()

    def check(self, now: float) -> None:
        """Close the connection if its client is late."""
        limits = self._table.limits
        if self.transport.is_closing():
            return
        if self.idle:
            since = self._header_since
            if since is not None and now - since > limits.header_seconds:
                self._refuse(408, "timed_out", "the request's header did not come in time")
        elif self.conn.their_state is h11.SEND_BODY:
            if not self.cycle.response_complete:
                self._check_body(now, limits)
            elif now - self._answered_at > LINGER_SECONDS:
                self.transport.abort()
        if not self.flow.write_paused:
            self._unread_bytes = 0
        elif (unread := self.transport.get_write_buffer_size()) != self._unread_bytes:
            self._unread_since, self._unread_bytes = now, unread
        elif now - self._unread_since > limits.read_seconds:
            self.transport.abort()

    def _check_body(self, now: float, limits: Limits) -> None:
        if self.flow.read_paused or self.cycle.waiting_for_100_continue:
            self._body_since, self._body_bytes = now, 0  # it is the gateway that is slow
        elif now - self._body_since >= BODY_SECONDS:
            if self._body_bytes < limits.least_rate * BODY_SECONDS:
                self._refuse(
                    408, "timed_out", f"the body came at less than {limits.least_rate:,} bytes/s"
                )
            self._body_since, self._body_bytes = now, 0

    def send_400_response(self, msg: str) -> None:
        """Answer something that is not HTTP; in the middle of an answer, just close."""
        self._refuse(400, "invalid", "this is not a valid HTTP request")

    def _refuse(self, status: int, code: str, message: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            asked = self.conn.our_state is h11.SEND_RESPONSE
            empty = asked and self.cycle.scope["method"] == "HEAD"  # whose answers have no body
            retryable = status != 400
            facts = {"code": code, "message": message, "retryable": retryable}
            body = json.dumps({"error": facts}).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            if retryable:
                headers.append((b"retry-after", b"2"))
            for event in (
                h11.Response(status_code=status, headers=headers),
                h11.Data(data=b"" if empty else body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
            if self.cycle is not None:  # the request is answered; its handler may not know yet
                self.cycle.disconnected = True
                self.cycle.message_event.set()
        self.transport.close()
