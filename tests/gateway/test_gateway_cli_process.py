"""Commands in processes of their own: interrupted, and with standard input as shells leave it."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from harness import Gateway


def farm(gateway: Gateway, *arguments: str, **given: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "farm.cli", *arguments],
        env=os.environ | {"FARM_URL": gateway.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **given,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("arguments", [["watch"], ["wait"], ["fetch", "-o", "a b"]])
def test_an_interrupted_command_says_how_to_go_on(
    gateway: Gateway, tmp_path: Path, arguments: list[str]
) -> None:
    with gateway.client() as http:
        job = http.post("/v1/jobs", json={"renders": [{"prompt": "x"}]}).json()["id"]
        command = [arguments[0], job, *arguments[1:]]
        before = polls(http)
        process = farm(gateway, *command, cwd=tmp_path)
        if arguments == ["watch"]:
            assert process.stderr is not None
            assert "queued" in process.stderr.readline()
        else:
            wait_for(lambda: polls(http) > before + 1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == f"interrupted; to continue: farm {shlex.join(command)}"
    assert "Traceback" not in err
    assert out == ""


def test_an_interrupted_submission_goes_on_with_the_command_it_prints(gateway: Gateway) -> None:
    lines = [
        json.dumps({"prompt": f"p{number}", "num_inference_steps": 1}) for number in range(5000)
    ]
    process = farm(gateway, "submit", "-", "--name", "my job", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write("\n".join(lines[:4500]))
    process.stdin.flush()
    with gateway.client() as http:
        wait_for(lambda: http.get("/v1/jobs").json()["jobs"])
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out) == (130, "")
        command = shlex.split(err.splitlines()[-1].partition("to go on: ")[2])
        assert command[:5] == ["farm", "submit", "-", "--name", "my job"]
        again = farm(gateway, *command[1:], stdin=subprocess.PIPE)
        out, err = again.communicate("\n".join(lines), timeout=60)
        assert again.returncode == 0, err
        (job,) = http.get("/v1/jobs").json()["jobs"]
    assert (job["id"], job["images"]["total"]) == (out.strip(), 5000)


def polls(http: httpx2.Client) -> float:
    """How many requests there were for a job or its pictures."""
    counts = (
        line.rsplit(" ", 1)
        for line in http.get("/metrics").text.splitlines()
        if line.startswith("farm_requests_total") and 'route="/v1/jobs/{job}' in line
    )
    return sum(float(count) for _, count in counts)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_standard_input_may_be_piped_and_may_be_closed(gateway: Gateway) -> None:
    for text in ('{"prompt": "a"}\n{"prompt": "b"}\n', "a\nb\n"):
        process = farm(gateway, "submit", "-", "--json", stdin=subprocess.PIPE)
        out, err = process.communicate(text, timeout=20)
        assert json.loads(out)["accepted"] == 2, err
    closed = farm(gateway, "submit", "-", preexec_fn=lambda: os.close(0))
    out, err = closed.communicate(timeout=20)
    assert closed.returncode == 2
    assert "standard input is closed" in err
