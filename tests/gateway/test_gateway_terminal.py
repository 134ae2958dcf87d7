"""Commands on terminals and in environments as people have them: a result, or one clear line."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx2
import pytest
from fake_worker import FakeWorker
from harness import Gateway
from PIL import Image

from farm.cli import output
from farm.cli.app import run
from farm.scoring import scorer
from farm.verify import repair
from farm_client import Farm


def farm(
    gateway: Gateway, *arguments: str, shell: str = '"$@"', **environment: str
) -> "subprocess.CompletedProcess[bytes]":
    """A command in a shell that may redirect its output."""
    return subprocess.run(
        ["sh", "-c", shell, "sh", sys.executable, "-m", "farm.cli", *arguments],
        env=os.environ | {"FARM_URL": gateway.url} | environment,
        capture_output=True,
        timeout=60,
    )


def only_line(ended: "subprocess.CompletedProcess[bytes]") -> str:
    (line,) = ended.stderr.decode().splitlines()
    return line


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_without_unicode_shows_names_as_it_can(
    gateway: Gateway, http: httpx2.Client, encoding: str
) -> None:
    http.post("/v1/jobs", json={"renders": [{"prompt": "x"}], "name": "é 猫"})
    ended = farm(gateway, "ls", PYTHONIOENCODING=encoding)
    assert ended.returncode == 0
    assert "é 猫".encode(encoding, "backslashreplace") in ended.stdout


def test_json_is_json_on_a_terminal_without_unicode(gateway: Gateway, http: httpx2.Client) -> None:
    http.post("/v1/jobs", json={"renders": [{"prompt": "x"}], "name": "é"})
    ended = farm(gateway, "ls", "--json", PYTHONIOENCODING="ascii")
    assert b'"name": "\\u00e9"' in ended.stdout


@pytest.mark.parametrize(
    ("shell", "json"), [('"$@" >/dev/full', False), ('"$@" >/dev/full', True), ('"$@" >&-', False)]
)
def test_the_id_of_a_job_reaches_the_user_although_the_output_takes_nothing(
    gateway: Gateway, http: httpx2.Client, shell: str, json: bool
) -> None:
    ended = farm(gateway, "submit", "a boat", *(["--json"] if json else []), shell=shell)
    (job,) = http.get("/v1/jobs").json()["jobs"]
    made, error = ended.stderr.decode().splitlines()
    assert ended.returncode == 1
    assert made == f"job {job['id']} was made"
    assert error.startswith("error[farm]: the standard output")


def test_the_id_of_a_job_reaches_the_user_although_nobody_reads_the_output(
    gateway: Gateway, http: httpx2.Client
) -> None:
    ended = farm(gateway, "submit", "a boat", shell='{ sleep 0.1; "$@"; } | true')
    (job,) = http.get("/v1/jobs").json()["jobs"]
    assert only_line(ended) == f"job {job['id']} was made"


def test_a_reader_that_has_seen_enough_is_not_a_failure(
    gateway: Gateway, http: httpx2.Client
) -> None:
    http.post("/v1/jobs", json={"renders": [{"prompt": "x"}]})
    ended = farm(gateway, "ls", shell='{ sleep 0.1; "$@"; echo $? >&2; } | true')
    assert only_line(ended) == "0"


def test_a_full_stderr_costs_nothing(gateway: Gateway) -> None:
    ended = farm(gateway, "submit", "a boat", shell='"$@" 2>/dev/full')
    assert ended.returncode == 0
    assert ended.stdout.startswith(b"j0-")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1", "pip install socksio"),
        ("HTTPS_PROXY", "foo://u:secret@x", "is not the address of a proxy"),
        ("SSL_CERT_FILE", "/nonexistent.pem", "No such file"),
        ("SSL_CERT_FILE", os.devnull, "holds no certificates"),
    ],
)
def test_a_proxy_or_certificate_that_cannot_be_used_is_named(
    gateway: Gateway, name: str, value: str, told: str
) -> None:
    ended = farm(gateway, "ls", FARM_URL="https://farm.invalid", **{name: value})
    assert ended.returncode == 2
    line = only_line(ended)
    assert line.startswith(f"error[invalid] {name}:")
    assert told in line
    assert "secret" not in line


@pytest.mark.parametrize("name", ["ALL_PROXY", "SSL_CERT_FILE"])
def test_a_farm_on_this_machine_needs_neither_proxy_nor_certificates(
    gateway: Gateway, name: str
) -> None:
    assert farm(gateway, "ls", **{name: "socks5://127.0.0.1:1"}).returncode == 0


def test_a_proxy_that_does_not_answer_is_named_without_its_password(gateway: Gateway) -> None:
    proxy = {"http_proxy": "http://u:secret@127.0.0.1:1", "no_proxy": ""}
    line = only_line(farm(gateway, "ls", FARM_URL="http://farm.invalid", **proxy))
    assert "through the proxy http://127.0.0.1:1; NO_PROXY=farm.invalid" in line


def test_a_home_that_cannot_be_used_stands_in_the_way_of_farm_up_only(gateway: Gateway) -> None:
    nowhere = {"HOME": "/proc/1/nowhere", "FARM_DATA": "", "XDG_DATA_HOME": ""}
    assert farm(gateway, "ls", **nowhere).returncode == 0
    ended = farm(gateway, "up", **nowhere)
    assert ended.returncode == 2
    assert "FARM_DATA: /proc/1/nowhere/.local/share/amused-farm cannot be used" in only_line(ended)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("export {job} -o {folder} --as parquet", ["1 picture", "writing 1 picture"]),
        ("fetch {job} -o {folder}", ["1 picture"]),
        ("score {job} --with size", ["1 picture"]),
        ("stats {job}", ["1 picture"]),
        ("verify {job}", ["1 picture"]),
        ("rm {job}", ["1 object"]),
    ],
)
def test_a_terminal_sees_how_far_a_command_is_that_may_take_long_until_it_says_more(
    gateway: Gateway,
    fake_worker: FakeWorker,
    command: str,
    told: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(repair, "SIGN_SECONDS", -1)
    monkeypatch.setattr(output, "TELL_SECONDS", 0)
    monkeypatch.setattr(scorer, "open_scorer", lambda _: Size())
    monkeypatch.setenv("FARM_URL", gateway.url)
    with Farm(gateway.url) as client:
        job = client.submit("a boat")
        job.wait(20)
    words = command.format(job=job.id, folder=tmp_path / "out").split()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run(words) == 0
    error = capsys.readouterr().err
    shown = re.findall(r"\x1b\[K(.*?)\r", error)
    assert [one for one in dict.fromkeys(shown) if one in told] == told
    assert not re.search(r"\r(?!\r|\x1b\[K)", error)  # written over what stays behind it


class Size:
    """A scorer."""

    def score(self, pictures: Sequence[Image.Image]) -> list[dict[str, int]]:
        return [{"size": picture.width} for picture in pictures]
