"""Clients that stop in the middle: of a header, of a body, of an answer."""

import contextlib
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from harness import Gateway, Serve, ndjson, png, post

from farm.sinks.protocol import Source

OPEN_CONNECTIONS = 2000
STALLED_UPLOADS = 100
PART_OF_A_HEADER = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
START_OF_AN_UPLOAD = b"PUT /v1/assets HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"


@contextlib.contextmanager
def sockets() -> Iterator[list[socket.socket]]:
    held: list[socket.socket] = []
    try:
        yield held
    finally:
        for one in held:
            one.close()


def dial(gateway: Gateway, held: list[socket.socket], data: bytes = b"") -> socket.socket:
    parts = urlsplit(gateway.url)
    one = socket.create_connection((parts.hostname, parts.port), timeout=20)
    held.append(one)
    one.sendall(data)
    return one


def ended(one: socket.socket) -> bytes:
    """What the gateway said before it hung up."""
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while part := one.recv(65536):
            said += part
    return said


@pytest.fixture
def strict(start: Serve, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    """A gateway of little patience."""
    monkeypatch.setattr("farm.gateway.connections.CHECK_SECONDS", 0.1)
    monkeypatch.setattr("farm.gateway.connections.BODY_SECONDS", 0.5)
    monkeypatch.setattr("farm.gateway.connections.LINGER_SECONDS", 0.5)
    return start(
        header_seconds=0.5, read_seconds=0.5, max_connections=40, max_connections_per_address=20
    )


def test_half_open_requests_and_stalled_uploads_keep_no_submission_waiting(
    gateway: Gateway,
) -> None:
    with sockets() as held:
        for _ in range(STALLED_UPLOADS):
            dial(gateway, held, START_OF_AN_UPLOAD + b"x" * 1000)
        for _ in range(OPEN_CONNECTIONS):
            dial(gateway, held, PART_OF_A_HEADER)
        seconds = []
        for _ in range(5):
            with gateway.client() as http:
                started = time.monotonic()
                assert post(http, {"prompt": "x"}).status_code == 201
                assert http.put("/v1/assets", content=png()).status_code == 201
                seconds.append(time.monotonic() - started)
    assert min(seconds) < 1  # the others may have waited for this machine, not for the gateway


@pytest.mark.parametrize("data", [b"", PART_OF_A_HEADER, b"G"])
def test_a_header_that_does_not_come_ends_the_connection(strict: Gateway, data: bytes) -> None:
    with sockets() as held:
        assert b" 408 " in ended(dial(strict, held, data))


def test_a_header_that_comes_byte_by_byte_has_the_same_deadline(strict: Gateway) -> None:
    with sockets() as held:
        slow = dial(strict, held)
        with contextlib.suppress(OSError):
            for byte in PART_OF_A_HEADER + b"y" * 1000:
                slow.sendall(bytes([byte]))
                time.sleep(0.05)
        assert b" 408 " in ended(slow)


def test_the_second_request_of_a_connection_has_a_deadline_too(strict: Gateway) -> None:
    with sockets() as held:
        twice = dial(strict, held, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in twice.recv(65536)
        twice.sendall(PART_OF_A_HEADER)
        assert b" 408 " in ended(twice)


@pytest.mark.parametrize("pause", [0.0, 0.1])
def test_a_body_that_comes_too_slowly_ends_the_connection(strict: Gateway, pause: float) -> None:
    with sockets() as held:
        slow = dial(strict, held, START_OF_AN_UPLOAD)
        with contextlib.suppress(OSError):
            for _ in range(30 if pause else 0):
                slow.sendall(b"x")
                time.sleep(pause)
        said = ended(slow)
    assert b" 408 " in said
    assert b"1,024 bytes/s" in said


def test_a_body_that_trickles_on_behind_its_answer_ends_the_connection(strict: Gateway) -> None:
    """What is not there is refused before the body: no key is needed for that."""
    refused = START_OF_AN_UPLOAD.replace(b"/v1/assets", b"/nothing")
    with sockets() as held:
        slow = dial(strict, held, refused)
        assert b" 404 " in slow.recv(65536)
        deadline = time.monotonic() + 60
        with pytest.raises((ConnectionResetError, BrokenPipeError)):  # noqa: PT012
            while time.monotonic() < deadline:
                slow.sendall(b"x")
                time.sleep(0.05)


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_a_late_body_is_refused_whatever_the_method_and_so_is_the_next_one(
    strict: Gateway, monkeypatch: pytest.MonkeyPatch, method: bytes
) -> None:
    def slow_store(_: str) -> int:
        time.sleep(1.5)
        return 1

    url = strict.app_deps.links.through_gateway(Source(key="probe", name="probe.png", size=1))
    monkeypatch.setattr(strict.app_deps.store, "size", slow_store)
    head = b"%s %s HTTP/1.1\r\nHost: localhost\r\n" % (method, url.encode())
    with sockets() as held:
        assert b" 408 " in ended(dial(strict, held, head + b"Content-Length: 100000\r\n\r\n"))
        assert b" 400 " in ended(
            dial(strict, held, head + b"Transfer-Encoding: chunked\r\n\r\nno size\r\n")
        )
        assert b" 408 " in ended(dial(strict, held, PART_OF_A_HEADER))


def test_an_answer_that_is_not_read_ends_the_connection(strict: Gateway) -> None:
    many = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000
    with sockets() as held:
        deaf = dial(strict, held)
        deaf.settimeout(5)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):  # noqa: PT012
            while True:
                deaf.sendall(many)
    assert strict.client().get("/healthz").status_code == 200


def health(connection: socket.socket) -> bytes:
    """A whole answer of ``/healthz``: head and body may come one after the other."""
    read = b""
    while not read.endswith(b"}"):
        piece = connection.recv(65536)
        assert piece, read
        read += piece
    return read


def test_a_newcomer_takes_the_place_of_the_oldest_connection_that_asks_for_nothing(
    start: Serve,
) -> None:
    full = start(max_connections_per_address=5, header_seconds=60)
    with sockets() as held:
        used = dial(full, held, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in health(used)
        oldest, *_ = [dial(full, held, PART_OF_A_HEADER) for _ in range(5)]
        with full.client() as http:
            assert http.get("/healthz").status_code == 200
        assert ended(oldest) == b""
        used.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in health(used)


def test_where_every_connection_is_at_work_a_newcomer_is_told_to_come_again(start: Serve) -> None:
    full = start(max_connections_per_address=5)
    with sockets() as held:
        for _ in range(5):
            dial(full, held, START_OF_AN_UPLOAD + b"x")
        time.sleep(0.2)
        said = ended(dial(full, held))
    assert b" 503 " in said
    assert b"retry-after" in said.lower()


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\r\n\r\n",
        b"GET / HTTP/x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_and_hung_up(gateway: Gateway, data: bytes) -> None:
    with sockets() as held:
        said = ended(dial(gateway, held, data))
    assert said.split(b"\r\n")[0].split()[1][:1] == b"4"


def test_bodies_that_wait_take_no_more_memory_than_they_may(start: Serve) -> None:
    small = start(max_body_memory=1_000_000)
    with sockets() as held:
        for _ in range(4):
            dial(small, held, START_OF_AN_UPLOAD + b"x" * 99_999)
        time.sleep(0.3)
        with small.client() as http:
            large = http.put("/v1/assets", content=b"x" * 200_000)
            assert large.status_code == 429
            assert "500,000" in large.json()["error"]["message"]
            assert post(http, {"prompt": "x"}).status_code == 201
            lines = ndjson([{"prompt": "x" * 1000}] * 200)
            job = http.post("/v1/jobs?open").json()["id"]
            headers = {"Content-Type": "application/x-ndjson"}
            for method, path in (("POST", "/v1/jobs"), ("PUT", f"/v1/jobs/{job}/chunks/0?first=0")):
                large = http.request(method, path, content=lines, headers=headers)
                assert large.status_code == 429
                assert "500,000" in large.json()["error"]["message"]
        for one in held:
            one.close()
        time.sleep(0.3)
        with small.client() as http:
            for _ in range(4):
                assert http.put("/v1/assets", content=b"x" * 200_000).status_code == 422


@pytest.mark.parametrize("host", [b"localhost", b"["])
def test_a_request_whose_body_is_not_http_is_answered_once(
    gateway: Gateway, caplog: pytest.LogCaptureFixture, host: bytes
) -> None:
    """Its handler begins before the rest of it is read."""
    request = b"POST /v1/jobs HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n?\r\n"
    with sockets() as held:
        answers = [ended(dial(gateway, held, request % host)) for _ in range(5)]
    assert [answer.partition(b"\r\n")[0] for answer in answers] == [b"HTTP/1.1 400 "] * 5
    assert [answer.count(b"HTTP/1.1") for answer in answers] == [1] * 5
    assert not [record for record in caplog.records if record.exc_info]
