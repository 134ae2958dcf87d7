"""The gateway as a process of its own."""

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
from harness import gateway_process

from farm.gateway.__main__ import main
from farm.queue import connect


def start(environment: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "farm.gateway"],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_it_serves_until_it_is_told_to_stop(redis_url: str, tmp_path: Path) -> None:
    port = free_port()
    process = start(
        {
            "FARM_DATA": str(tmp_path),
            "REDIS_URL": redis_url,
            "FARM_PORT": str(port),
            "FARM_OPEN": "1",
        }
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                with urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
                    assert answer.status == 200
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        secret = tmp_path / "secret"
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    finally:
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=30)
    assert process.returncode in (0, -signal.SIGTERM)
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"FARM_PORT": "many"}, "FARM_PORT"),
        ({"REDIS_URL": "nowhere"}, "REDIS_URL"),
        ({"FARM_OPEN": "0"}, "FARM_KEYS"),
        ({"FARM_KEYS": "/does/not/exist"}, "FARM_KEYS"),
        ({"FARM_CHECKPOINTS": "/does/not/exist"}, "checkpoint"),
        ({"FARM_STORE": "ftp://x"}, "store"),
    ],
)
def test_a_wrong_setting_stops_the_start_in_one_line(
    tmp_path: Path,
    environment: dict[str, str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usual = {"FARM_DATA": str(tmp_path), "REDIS_URL": "unix:///x", "FARM_OPEN": "1"}
    for name, value in {**usual, **environment}.items():
        monkeypatch.setenv(name, value)
    assert main() == 2
    # Gateways that other tests have started in this process may log something, too.
    lines = capsys.readouterr().err.splitlines()
    [line] = [line for line in lines if not re.match(r"\d{4}-\d\d-", line)]
    assert words in line


def test_a_gateway_tells_the_queue_how_long_things_are_kept(redis_url: str, tmp_path: Path) -> None:
    settings = {"FARM_NAME": "kept", "FARM_RETENTION_DAYS": "2", "FARM_OPEN_HOURS": "0.5"}
    with gateway_process(redis_url, tmp_path, **settings):
        told = connect(redis_url).hgetall("{kept}:server")
    assert (told["retention"], told["patience"]) == ("172800000", "1800000")
