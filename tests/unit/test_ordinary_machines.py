"""``farm up`` on machines as people have them: proxies, long paths, odd names, a missing GPU."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from farm import machine
from farm.errors import InvalidCheckpoint, InvalidInput, Unavailable
from farm.local import ports
from farm.local.embedded import Embedded
from farm.local.plan import Plan
from farm.local.ports import free_port, kept_port
from farm.local.probes import answers
from farm.paths import make_private


def plan(data: Path, **given: str) -> Plan:
    return Plan(data=data, port=1, workers=1, checkpoints=("shapes-64",), **given)  # type: ignore[arg-type]


class Ok(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_proxy_is_not_asked_for_this_machines_own_address(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "example.org")
    server = HTTPServer(("127.0.0.1", 0), Ok)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert answers(f"http://127.0.0.1:{server.server_port}/")
    finally:
        server.shutdown()
        server.server_close()
    (tmp_path / "run").mkdir()
    told = Embedded(plan(tmp_path)).environment
    assert told["no_proxy"].split(",")[:2] == ["example.org", "127.0.0.1"]
    assert told["NO_PROXY"] == told["no_proxy"]


@pytest.mark.parametrize("name", ["é", "a#b", "a?b", "a%41b", "a b", "x" * 120])
@pytest.mark.parametrize("temporary", ["", "t" * 60])
def test_any_data_folder_has_short_and_plain_paths_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, temporary: str
) -> None:
    if temporary:  # as long as a Mac's
        (tmp_path / temporary).mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / temporary))
    data = tmp_path / name
    data.mkdir()
    farm = Embedded(plan(data))
    path = farm.redis_url.removeprefix("unix://").removesuffix("?db=0")
    assert len(path) < 60
    assert path.isascii()
    assert not set("#?% ") & set(path)
    (data / "valkey").mkdir()
    assert Path(path).parent.resolve() == (data / "valkey").resolve()
    farm.clean()
    assert not Path(path).parent.exists()


@pytest.mark.parametrize(
    ("address", "told"),
    [("auto", "does not name"), ("local", "does not name"), ("dead", "listens")],
)
def test_a_ray_address_that_names_no_living_cluster_is_told_at_once(
    tmp_path: Path, address: str, told: str
) -> None:
    if address == "dead":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(InvalidInput, match=told) as caught:
        plan(tmp_path, ray_address=address).complete()
    assert caught.value.field == "RAY_ADDRESS"
    assert "unset RAY_ADDRESS" in str(caught.value.hint)


def test_what_a_ray_elsewhere_needs_is_told_with_what_named_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.local.plan.reachable", lambda _: True)
    with pytest.raises(InvalidInput, match=r"RAY_ADDRESS=10\.255\.255\.1:6379") as caught:
        plan(tmp_path, ray_address="10.255.255.1:6379").complete()
    assert caught.value.field == "REDIS_URL"
    assert "unset RAY_ADDRESS" in str(caught.value.hint)


def test_a_comma_in_a_checkpoints_path_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "one,two"
    folder.mkdir()
    asked = replace(plan(tmp_path), checkpoints=(str(folder),))
    with pytest.raises(InvalidCheckpoint, match="has a comma in its path") as caught:
        asked.complete()
    assert "symbolic link" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"redis_url": "redis://127.0.0.1:1"}, "Redis does not answer"),
        ({"store": "{folder}/file/store"}, "there is a file where a folder is needed"),
        (
            {"store": "s3://bucket?endpoint_url=http://127.0.0.1:1&region=us-east-1"},
            "127.0.0.1:1 does not answer",
        ),
    ],
)
def test_a_server_or_store_that_does_not_answer_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], told: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    (tmp_path / "file").write_text("")
    settings = {name: value.format(folder=tmp_path) for name, value in given.items()}
    with pytest.raises(Unavailable) as caught:
        plan(tmp_path, **settings).complete()
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("visible", "there", "counted"),
    [
        ("0", 0, 0),
        ("GPU-1a,GPU-2b", 0, 0),
        ("0,1", 1, 1),
        ("0", 2, 1),
        ("", 2, 0),
        ("0,-1,1", 2, 1),
    ],
)
def test_a_gpu_that_is_named_and_not_there_is_not_counted(
    monkeypatch: pytest.MonkeyPatch, visible: str, there: int, counted: int
) -> None:
    real = Path.glob

    def glob(self: Path, pattern: str) -> object:
        if str(self) == "/proc/driver/nvidia/gpus":
            return [self / str(number) for number in range(there)]
        return [] if str(self) == "/dev" else real(self, pattern)

    monkeypatch.setattr(Path, "glob", glob)
    monkeypatch.setattr(Path, "exists", lambda self: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.count_gpus() == counted


def test_what_a_farm_keeps_is_for_its_user_only_whatever_was_there(tmp_path: Path) -> None:
    old = tmp_path / "store" / "job"
    old.mkdir(parents=True, mode=0o755)
    (tmp_path / "store").chmod(0o755)
    before = os.umask(0o000)
    try:
        make_private(tmp_path)
        (tmp_path / "run").mkdir()
        (tmp_path / "secret").write_text("x")
    finally:
        os.umask(before)
    for name, mode in (("store", 0o700), ("run", 0o700), ("secret", 0o600)):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode, name


def test_a_port_is_found_where_no_lock_can_be_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    tries = iter([str(tmp_path / "file")] * 100)  # so that a search without an end fails
    monkeypatch.setattr(ports, "short_temp", lambda: next(tries))
    assert free_port() in range(*ports.PORTS)


def test_processes_that_start_at_once_never_reserve_the_same_port() -> None:
    program = (
        "import sys; from farm.local.ports import free_port;"
        "print(*[free_port(8265) for _ in range(20)], flush=True); sys.stdin.read()"
    )
    asked = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    found = [port for process in asked for port in process.stdout.readline().split()]  # type: ignore[union-attr]
    mine = [str(free_port()) for _ in range(20)]  # while the others hold theirs
    for process in asked:
        process.communicate("")
    assert len(found) == 60
    assert len({*found, *mine}) == 80


def test_a_port_is_kept_and_a_file_that_was_cut_off_stops_nothing(tmp_path: Path) -> None:
    file = tmp_path / "ports.json"
    port = kept_port(file, free_port())
    file.write_text(file.read_text()[:-3])  # as a full disk leaves it
    assert kept_port(file, free_port()) > 0
    file.write_text(json.dumps({"dashboard": 1}))  # not for users
    assert kept_port(file, 0) != port
    assert kept_port(tmp_path / "no" / "ports.json", 0) > 0


def test_a_variable_that_does_not_count_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    for name in [one for one in os.environ if one.startswith(("FARM_", "RAY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FARM_PORT", "1")  # the plan's own
    assert Embedded(plan(tmp_path)).unheeded == []
    monkeypatch.setenv("FARM_HOST", "0.0.0.0")
    assert Embedded(plan(tmp_path)).unheeded == ["FARM_HOST"]
