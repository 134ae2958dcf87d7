"""S3 servers for tests: ministack in a process, Ceph's object gateway, and a stub that fails in the
ways it is told to."""

import base64
import contextlib
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple


@contextlib.contextmanager
def ministack(folder: Path) -> Iterator[str]:
    """The address of a server of its own on a free port; loopback only."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "SERVICES": "s3",
        "IOT_MTLS_ENABLED": "0",  # else it listens on a second port
        "TMPDIR": str(folder),
    }
    with (folder / "ministack.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ministack"], env=environment, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"{address}/_ministack/health", timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((folder / "ministack.log").read_text()) from None
                time.sleep(0.05)
        yield address
    finally:
        process.kill()
        process.wait()


CEPH = Path(__file__).parents[2] / "tools" / "ceph.sh"
CEPH_SECONDS = 120  # until it answers; 15 where nothing else runs


def ceph_is_installed() -> bool:
    return all(map(shutil.which, ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "setpriv")))


def _two_free_ports() -> int:
    """The first of two ports in a row: a monitor needs both."""
    while True:
        with socket.socket() as one, socket.socket() as next_one:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                next_one.bind(("127.0.0.1", port + 1))
                return port


@contextlib.contextmanager
def ceph(folder: Path) -> Iterator[str]:
    """The address of a gateway on a free port; it ends with this process, however that ends."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
        monitor_port = _two_free_ports()
    command = ["setpriv", "--pdeathsig", "TERM", str(CEPH), str(port), str(monitor_port)]
    with (folder / "ceph.log").open("wb") as log:
        process = subprocess.Popen([*command, str(folder)], stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + CEPH_SECONDS
        while True:
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((folder / "ceph.log").read_text()) from None
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait()


class Answer(NamedTuple):
    status: int
    code: str = ""  # of S3's error
    body: bytes = b""
    promised: int | None = None  # content length, where it is not the body's
    headers: Mapping[str, str] = {}


def deleted(*keys: str) -> bytes:
    """What a server says that has deleted these at once."""
    named = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
    return f"<DeleteResult>{named}</DeleteResult>".encode()


class StubS3:
    """Keeps objects, but asks ``rule(method, path)`` first; what that returns is the answer."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.rule: Callable[[str, str], Answer | None] = lambda method, path: None
        self.honours_conditions = True
        self._lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self) -> None:
                path = self.path.split("?")[0]
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer = stub.answer(self.command, path, headers, body)
                content = answer.body or (
                    f"<Error><Code>{answer.code}</Code><Message>said so</Message></Error>".encode()
                    if answer.code
                    else b""
                )
                self.send_response(answer.status)
                length = len(content) if answer.promised is None else answer.promised
                self.send_header("Content-Length", str(length))
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)
                if answer.promised is not None:
                    self.close_connection = True

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = do  # noqa: N815

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        with self._lock:
            self.requests.append((method, path, headers))
            if ruled := self.rule(method, path):
                return ruled
            digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
            if headers.get("content-md5", digest) != digest:
                return Answer(400, "BadDigest")
            if method == "PUT":
                if self.honours_conditions and "if-none-match" in headers and path in self.objects:
                    return Answer(412, "PreconditionFailed")
                self.objects[path] = body
                return Answer(200)
            if method == "DELETE":
                self.objects.pop(path, None)
                return Answer(204)
            if method == "POST":
                keys = re.findall("<Key>(.*?)</Key>", body.decode())
                for key in keys:
                    self.objects.pop(f"{path}/{key}", None)
                return Answer(200, body=deleted(*keys))
            if path not in self.objects:
                return Answer(404, "NoSuchKey")
            return Answer(200, body=self.objects[path])

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
