"""Checkpoints of the hub with its own client, against an endpoint on this machine."""

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from farm.checkpoints import host
from farm.checkpoints.inspect import inspect_checkpoint
from farm.checkpoints.references import built_in
from farm.errors import InvalidCheckpoint

SHIPPED = built_in()["shapes-64"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFERENCE = f"ann/shapes@{COMMIT}"
FETCH = """
import sys
from farm.checkpoints.inspect import inspect_checkpoint
print(inspect_checkpoint(sys.argv[1]).path)
"""


class Hub(BaseHTTPRequestHandler):
    """What of the hub's API a download uses."""

    sent: Counter[str]
    damaged: Counter[str]  # files, and how often they come damaged

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        if path := self.path.partition(f"/resolve/{COMMIT}/")[2]:
            self._file(path, with_body=False)
        else:
            self._answer(b"")

    def do_GET(self) -> None:
        if "/tree/" in self.path:
            self._answer(json.dumps([self._entry(file) for file in files()]).encode())
        else:
            self._file(self.path.partition(f"/resolve/{COMMIT}/")[2], with_body=True)

    def _entry(self, file: Path) -> dict[str, Any]:
        data = file.read_bytes()
        entry = {"type": "file", "path": str(file.relative_to(SHIPPED)), "size": len(data)}
        if is_large(file):
            return {
                **entry,
                "oid": "0" * 40,
                "lfs": {"oid": etag(file), "size": len(data), "pointerSize": 134},
            }
        return {**entry, "oid": etag(file)}

    def _file(self, path: str, *, with_body: bool) -> None:
        file, data = SHIPPED / path, (SHIPPED / path).read_bytes()
        if with_body:
            self.sent[path] += 1
            if self.damaged[path] > 0:
                self.damaged[path] -= 1
                data = data[:-1] + bytes([data[-1] ^ 1])
        told = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag(file)}"'}
        if is_large(file):
            told = {**told, "X-Linked-Etag": f'"{etag(file)}"', "X-Linked-Size": str(len(data))}
        self._answer(data, with_body=with_body, **told)

    def _answer(self, data: bytes, *, with_body: bool = True, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if with_body:
            self.wfile.write(data)


def files() -> list[Path]:
    return [file for file in sorted(SHIPPED.rglob("*")) if file.is_file()]


def is_large(file: Path) -> bool:
    return file.suffix == ".safetensors"


def etag(file: Path) -> str:
    data = file.read_bytes()
    if is_large(file):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Of processes of a host without the checkpoint."""
    Hub.sent, Hub.damaged = Counter(), Counter()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "PATH": "/bin",
    }
    server.shutdown()
    server.server_close()


def start(environment: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, REFERENCE],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def end(process: "subprocess.Popen[str]") -> tuple[str, str]:
    out, error = process.communicate(timeout=120)
    return out.strip(), error


@pytest.mark.slow
def test_the_processes_of_a_host_fetch_a_checkpoint_of_the_hub_once(
    environment: dict[str, str],
) -> None:
    ended = [end(one) for one in [start(environment) for _ in range(2)]]
    [path] = {out for out, _ in ended}
    assert COMMIT in path, ended
    assert set(Hub.sent.values()) == {1}
    gone = {**environment, "HF_ENDPOINT": "http://127.0.0.1:1"}
    assert end(start(gone))[0] == path, "it asks nobody about what is there"


@pytest.mark.slow
def test_a_file_that_comes_damaged_is_fetched_again_and_is_not_used(
    environment: dict[str, str],
) -> None:
    """With the size that the hub's client looks at."""
    large, small = "vqvae/diffusion_pytorch_model.safetensors", "vqvae/config.json"
    Hub.damaged = Counter({large: 1, small: 1})
    path, _ = end(start(environment))
    for name in (large, small):
        assert (Path(path) / name).read_bytes() == (SHIPPED / name).read_bytes()
        assert Hub.sent[name] == 2
    shutil.rmtree(environment["HF_HOME"])
    Hub.damaged = Counter({large: 9})
    out, error = end(start(environment))
    assert out == ""
    assert f"{large} comes damaged" in error


def test_room_for_a_checkpoint_of_the_hub_is_looked_for_first(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The client reads these when it is imported, and another test may have been the first to do so.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", environment["HF_ENDPOINT"])
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        environment["HF_ENDPOINT"] + "/{repo_id}/resolve/{revision}/{filename}",
    )
    free = host.SPARE_BYTES + 10**6
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12 - free, free)
    )
    with pytest.raises(InvalidCheckpoint) as refused:
        inspect_checkpoint(REFERENCE)
    assert "needs 5." in str(refused.value)
    assert "HF_HUB_CACHE" in str(refused.value)
    assert not Hub.sent
