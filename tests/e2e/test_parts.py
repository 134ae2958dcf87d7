"""The parts as separate processes: S3 for the store, and a worker that comes without Ray."""

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from running_farm import FARM, manifest
from s3_servers import ministack

from farm.local.ports import free_port
from farm.local.probes import answers
from farm.local.valkey import ServerProcess


@contextlib.contextmanager
def running(*command: str, environment: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, *command], env=environment)
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(20) is not None


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Of a farm whose server, store, gateway, scheduler and worker are started one by one."""
    # The S3 server takes its own environment's secret for the one that signs.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    port = free_port()
    with ServerProcess(tmp_path / "v").serving() as server, ministack(tmp_path) as store:
        environment = {
            **os.environ,
            "AWS_REGION": "us-east-1",
            "REDIS_URL": server.url,
            "FARM_DATA": str(tmp_path / "data"),
            "FARM_STORE": f"s3://farm/prefix?endpoint_url={store}",
            "FARM_CHECKPOINTS": "shapes-64",
            "FARM_OPEN": "1",
            "FARM_PORT": str(port),
            "FARM_URL": f"http://127.0.0.1:{port}",
        }
        boto3.client("s3", endpoint_url=store, region_name="us-east-1").create_bucket(Bucket="farm")
        with (
            running("-m", "farm.gateway", environment=environment),
            running("-m", "farm.cli", "scheduler", environment=environment),
            running("-m", "farm.cli", "worker", "--name", "w", environment=environment),
        ):
            deadline = time.monotonic() + 240
            while not answers(f"http://127.0.0.1:{port}/readyz"):
                assert time.monotonic() < deadline, "the farm is not ready"
                time.sleep(0.2)
            yield environment


@pytest.mark.slow
def test_a_farm_of_separate_processes_on_s3_serves_pictures_by_signed_addresses(
    environment: dict[str, str], tmp_path: Path
) -> None:
    submit = [*FARM, "submit", "a red circle", "-n", "3", "--seed", "5", "-o", str(tmp_path / "o")]
    submitted = subprocess.run(submit, env=environment, capture_output=True, text=True, timeout=300)
    assert submitted.returncode == 0, submitted.stderr
    job = submitted.stdout.strip()
    assert [row["seed"] for row in manifest(tmp_path / "o")] == [5, 6, 7]
    with urllib.request.urlopen(f"{environment['FARM_URL']}/v1/jobs/{job}/images") as answer:
        assert "X-Amz-Signature" in answer.read().decode()
