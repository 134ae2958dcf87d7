"""What the tests of the gateway share besides fixtures."""

import contextlib
import hashlib
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import psutil
import uvicorn
from description import check_answer
from fake_adapters import SIZES
from PIL import Image
from waiting import until as until

from farm.gateway.dependencies import Dependencies
from farm.queue import Queue
from farm.spec import CheckpointInfo
from farm.store import Store

INFO = CheckpointInfo(
    id="shapes-64", revision="r1", pixel_factor=8, size_multiple=8, native_height=64,
    native_width=64, default_guidance=4.0, vocab_size=72, codebook_size=64, mask_token_id=71,
    text_tokens=77, pooled_dim=32, hidden_dim=32, sizes=SIZES,
)  # fmt: skip


class Gateway(NamedTuple):
    url: str
    queue: Queue
    store: Store
    server: uvicorn.Server
    app_deps: Dependencies

    def client(self, key: str | None = None) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        hooks = {"response": [check_answer]}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=20, event_hooks=hooks)


def emptied(gateway: Gateway) -> Gateway:
    """Without its jobs and adapters."""
    for entry in list(gateway.store.list("adapters/")):
        gateway.store.delete(entry.key)
    client = gateway.queue.client
    kept = client.hgetall("{test}:server")
    client.flushall()
    if kept:
        client.hset("{test}:server", mapping=kept)
    return gateway


Serve = Callable[..., Gateway]


class Result(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Result]


def png(width: int = 64, height: int = 64, mode: str = "RGB", colour: Any = None) -> bytes:
    out = io.BytesIO()
    Image.new(mode, (width, height), colour).save(out, "PNG")
    return out.getvalue()


def safetensors(**tensors: tuple[str, list[int], bytes]) -> bytes:
    """A file of tensors: name = (dtype, shape, bytes)."""
    header, body = {}, b""
    for name, (dtype, shape, data) in tensors.items():
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        body += data
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def latents(rows: int = 8, columns: int = 8, code: int = 3) -> bytes:
    data = struct.pack(f"<{rows * columns}q", *[code] * (rows * columns))
    return safetensors(latents=("I64", [rows, columns], data))


def ndjson(renders: Iterable[Any]) -> bytes:
    lines = (one if isinstance(one, str) else json.dumps(one) for one in renders)
    return "\n".join(lines).encode() + b"\n"


def post(http: httpx2.Client, *renders: Any, **options: Any) -> httpx2.Response:
    body = json.dumps({"renders": list(renders), **options})
    return http.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})


def post_lines(http: httpx2.Client, body: bytes, **query: Any) -> httpx2.Response:
    headers = {"Content-Type": "application/x-ndjson"}
    return http.post("/v1/jobs", content=body, headers=headers, params=query)


def write_keys(path: Path, keys: dict[str, dict[str, object]]) -> Path:
    """A keys file for ``{key: {"tenant": ...}}``."""
    hashed = {hashlib.sha256(key.encode()).hexdigest(): facts for key, facts in keys.items()}
    path.write_text(json.dumps(hashed))
    return path


@contextlib.contextmanager
def gateway_process(
    redis_url: str, data: Path, **environment: str
) -> Iterator[tuple[str, psutil.Process]]:
    """An open gateway as a process of its own; its address and the process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    given = {
        "FARM_DATA": str(data), "REDIS_URL": redis_url, "FARM_PORT": str(port), "FARM_OPEN": "1",
        "FARM_CHECKPOINTS": "shapes-64", **environment,
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "farm.gateway"],
        env={**os.environ, **given},
        stderr=(data / "gateway.log").open("ab"),
    )
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx2.Client(base_url=url) as http:
            while True:
                try:
                    assert http.get("/healthz").status_code == 200
                    break
                except httpx2.HTTPError:
                    assert process.poll() is None
                    time.sleep(0.05)
        yield url, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
