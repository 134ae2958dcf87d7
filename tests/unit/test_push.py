"""``farm push`` with the hub's own client, against an endpoint on this machine."""

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from farm.cli.app import run
from farm.export.export import Plan
from farm.export.splits import Splits

FILES = {
    "data/train-00000.parquet": b"PAR1",
    "README.md": b"# a set\n",
    "_SUCCESS": Plan("job", "parquet").to_json().encode(),
}


class Hub(BaseHTTPRequestHandler):
    """What of the hub's API an upload of small files uses."""

    token = "secret"
    repositories: dict[str, dict[str, bytes]]

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._file()

    def _file(self) -> None:
        """``/datasets/USER/NAME/resolve/COMMIT/PATH``."""
        user, name, _, _, path = self.path.removeprefix("/datasets/").split("/", 4)
        kept = self.repositories[f"{user}/{name}"][path]
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(kept).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(kept)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(kept)

    def do_GET(self) -> None:
        repository = "/".join(self.path.split("/")[3:5])
        if "/resolve/" in self.path:
            self._file()
        elif "/tree/" in self.path:
            files = self.repositories.get(repository, {})
            tree = [
                {"type": "file", "path": path, "size": len(data), "oid": "0" * 40}
                for path, data in files.items()
            ]
            self._answer(200, tree)
        else:
            self._answer(200, {"id": repository, "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != f"Bearer {self.token}":
            self._answer(401, {"error": "unauthorized"})
        elif self.path == "/api/repos/create":
            told = json.loads(body)
            assert told["type"] == "dataset"
            self.repositories.setdefault(f"{told['organization']}/{told['name']}", {})
            self._answer(200, {"url": f"{self._base}/datasets/ann/set"})
        elif self.path.endswith("/preupload/main"):
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif "/commit/main" in self.path:
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._answer(200, {})

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        repository = self.path.split("/api/datasets/")[1].split("/commit/")[0]
        for line in lines:
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.repositories[repository][line["value"]["path"]] = content
            elif line["key"] == "deletedFile":
                del self.repositories[repository][line["value"]["path"]]
        url = f"{self._base}/datasets/{repository}/commit/{'1' * 40}"
        self._answer(200, {"commitUrl": url, "commitOid": "1" * 40, "success": True})

    @property
    def _base(self) -> str:
        return f"http://{self.headers['Host']}"

    def _answer(self, status: int, told: Any) -> None:
        data = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, dict[str, bytes]]]:
    """The files of its repositories."""
    Hub.repositories = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    # The client reads it when it is imported, and another test may have been the first to do so.
    monkeypatch.setattr("huggingface_hub.constants.HF_URL_HOSTS", frozenset({"127.0.0.1"}))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_TOKEN", Hub.token)
    yield Hub.repositories
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in FILES.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(data)
    return tmp_path / "set"


def test_every_file_of_a_data_set_reaches_the_hub(
    hub: dict[str, dict[str, bytes]], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["push", str(folder), "hf://datasets/ann/set"]) == 0
    assert hub == {"ann/set": FILES}
    assert "/datasets/ann/set/commit/111" in capsys.readouterr().out


def test_no_shard_of_an_earlier_push_stays_among_those_of_a_smaller_data_set(
    hub: dict[str, dict[str, bytes]], folder: Path
) -> None:
    (folder / "data" / "train-00001.parquet").write_bytes(b"PAR1")
    assert run(["push", str(folder), "hf://datasets/ann/set"]) == 0
    hub["ann/set"]["notes.md"] = b"mine"
    (folder / "data" / "train-00001.parquet").unlink()
    assert run(["push", str(folder), "hf://datasets/ann/set"]) == 0
    assert hub == {"ann/set": {**FILES, "notes.md": b"mine"}}


def test_no_shard_of_a_split_that_is_gone_stays(
    hub: dict[str, dict[str, bytes]], folder: Path
) -> None:
    split = Plan("job", "imagefolder", Splits.parse("train=0.5,test=0.5"))
    (folder / "_SUCCESS").write_bytes(split.to_json().encode())
    for name in ("train", "test"):
        (folder / name).mkdir()
        (folder / name / "0.png").write_bytes(b"PNG")
    assert run(["push", str(folder), "hf://datasets/ann/set"]) == 0
    hub["ann/set"]["extra/mine.parquet"] = b"mine"
    shutil.rmtree(folder)
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    assert run(["push", str(folder), "hf://datasets/ann/set"]) == 0
    assert hub["ann/set"] == {**FILES, "extra/mine.parquet": b"mine"}


def test_a_first_push_deletes_nothing_that_somebody_keeps_there(
    hub: dict[str, dict[str, bytes]], folder: Path
) -> None:
    hub["ann/set"] = {"data/mine.csv": b"1,2"}
    assert run(["push", str(folder), "hf://datasets/ann/set"]) == 0
    assert hub == {"ann/set": {**FILES, "data/mine.csv": b"1,2"}}


def test_what_cannot_be_pushed_is_one_line(
    hub: dict[str, dict[str, bytes]],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def told(*arguments: str) -> str:
        assert run(["push", *arguments]) != 0
        error = capsys.readouterr().err.strip()
        assert "\n" not in error
        return error

    assert "hf://datasets/USER/NAME" in told(str(folder), "s3://bucket/set")
    assert "farm export JOB" in told(str(folder / "data"), "hf://datasets/ann/set")
    assert "no such name" in told(str(folder), "hf://datasets/ann/a..b")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "does not let you write to ann/set" in told(str(folder), "hf://datasets/ann/set")
    monkeypatch.setenv("HF_TOKEN", Hub.token)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert "cannot be reached" in told(str(folder), "hf://datasets/ann/set")
    assert hub == {}
