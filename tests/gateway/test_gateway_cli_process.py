"""Commands in processes of their own: interrupted, and with standard input as shells leave it."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fake_worker import FakeWorker
from harness import Gateway
from waiting import until


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
            until(lambda: polls(http) > before + 1)
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
        # Not the job alone: the command may not have been answered by then.
        until(lambda: any(job["images"]["total"] for job in http.get("/v1/jobs").json()["jobs"]))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out) == (130, "")
        (job,) = http.get("/v1/jobs").json()["jobs"]
        assert f"interrupted (a part of {job['id']} is there)" in err
        command = shlex.split(err.splitlines()[-1].partition("to continue: ")[2])
        assert command[:-1] == ["farm", "submit", "-", "--name", "my job", "--idempotency-key"]
        for _ in range(2):  # the second finds the job whole, as after an interruption at its end
            again = farm(gateway, *command[1:], stdin=subprocess.PIPE)
            out, err = again.communicate("\n".join(lines), timeout=60)
            assert again.returncode == 0, err
            (job,) = http.get("/v1/jobs").json()["jobs"]
            assert (job["id"], job["images"]["total"]) == (out.strip(), 5000)


def killed_submission(gateway: Gateway, http: httpx2.Client, lines: list[str], *, sent: int) -> str:
    """The job of a submission whose process is killed while it waits for more lines."""
    process = farm(gateway, "submit", "-", "--priority", "bulk", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write("\n".join(lines) + "\n")
    process.stdin.flush()
    jobs: list[Any] = []

    def arrived() -> bool:
        jobs[:] = http.get("/v1/jobs").json()["jobs"]
        return any(job["images"]["total"] == sent for job in jobs)

    until(arrived)
    process.kill()
    process.communicate(timeout=20)
    (job,) = jobs
    assert job["state"] == "open"
    return str(job["id"])


def test_the_same_content_goes_on_with_what_a_killed_submission_left_but_not_with_a_whole_job(
    gateway: Gateway, tmp_path: Path
) -> None:
    lines = [f"p{number}" for number in range(5000)]
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(lines))
    with gateway.client() as http:
        open_job = killed_submission(gateway, http, lines[:4500], sent=4000)
        ids = []
        for _ in range(2):
            process = farm(gateway, "submit", str(file), "--priority", "bulk")
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            resumed = f"{open_job} was left unfinished by an earlier call; continuing it"
            assert (resumed in err) == (not ids)
            ids.append(out.strip())
        jobs = http.get("/v1/jobs").json()["jobs"]
    assert [job["id"] for job in jobs] == ids[::-1]
    assert ids[0] == open_job
    assert [(job["state"], job["images"]["total"]) for job in jobs] == [("queued", 5000)] * 2


def test_other_content_with_the_same_start_is_told_of_the_open_job(
    gateway: Gateway, tmp_path: Path
) -> None:
    lines = [f"p{number}" for number in range(6500)]
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join([*lines[:4000], *(f"q{number}" for number in range(2000))]))
    with gateway.client() as http:
        open_job = killed_submission(gateway, http, lines, sent=6000)
        again = farm(gateway, "submit", str(file), "--priority", "bulk")
        _, err = again.communicate(timeout=60)
    assert again.returncode == 2, err
    assert f"farm cancel {open_job}" in err.splitlines()[-1]


def test_json_of_a_submission_that_waits_tells_how_it_ended(
    gateway: Gateway, fake_worker: FakeWorker
) -> None:
    process = farm(gateway, "submit", "a boat", "--json", "--wait")
    out, err = process.communicate(timeout=30)
    told = json.loads(out)
    assert (process.returncode, told["state"], told["images"]["done"]) == (0, "done", 1), err
    assert (told["created"], told["accepted"]) == (True, 1)


def polls(http: httpx2.Client) -> float:
    """How many requests there were for a job or its pictures."""
    counts = (
        line.rsplit(" ", 1)
        for line in http.get("/metrics").text.splitlines()
        if line.startswith("farm_requests_total") and 'route="/v1/jobs/{job}' in line
    )
    return sum(float(count) for _, count in counts)


def test_standard_input_may_be_piped_and_may_be_closed(gateway: Gateway) -> None:
    for text in ('{"prompt": "a"}\n{"prompt": "b"}\n', "a\nb\n"):
        process = farm(gateway, "submit", "-", "--json", stdin=subprocess.PIPE)
        out, err = process.communicate(text, timeout=20)
        assert json.loads(out)["accepted"] == 2, err
    closed = farm(gateway, "submit", "-", preexec_fn=lambda: os.close(0))
    out, err = closed.communicate(timeout=20)
    assert closed.returncode == 2
    assert "standard input is closed" in err
