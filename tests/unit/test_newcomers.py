"""What people meet in their first minutes."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from farm.checkpoints import references
from farm.cli.app import run
from farm.cli.up import _announce
from farm.errors import InvalidCheckpoint
from farm.paths import DATA_HELP

ROOT = Path(__file__).parents[2]


def complete(words: str) -> list[str]:
    """What a shell offers for the last of the words."""
    told = subprocess.run(
        [sys.executable, "-m", "farm.cli"],
        env={
            **os.environ, "_FARM_COMPLETE": "complete_bash", "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        },
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return told.stdout.split()


def test_a_shell_completes_commands_and_options() -> None:
    assert complete("farm subm") == ["submit"]
    assert complete("farm submit --num-inf") == ["--num-inference-steps"]
    assert {"check", "weight"} <= set(complete("farm queue "))


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash is installed")
def test_the_script_for_bash_can_be_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    told = subprocess.run(
        ["bash", "-c", f"{script}\ncomplete -p farm"], capture_output=True, text=True, check=True
    )
    assert "_farm_completion farm" in told.stdout
    assert run(["completion", "tcsh"]) == 2


def test_the_folder_of_a_farm_is_told_in_one_piece_and_as_a_shell_takes_it(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(f"/nowhere/{'deep/' * 20}my [bold]farm")
    assert run(["down", "--data", str(folder)]) == 0
    plan = SimpleNamespace(url="http://x", checkpoints=["shapes-64"], data=folder)
    monkeypatch.setenv("FARM_KEYS", "/etc/keys.json")
    _announce(plan, "http://y")  # type: ignore[arg-type]
    told = capfd.readouterr().err.splitlines()
    assert told[0] == f"no farm runs in {folder}"
    assert f"Ray's dashboard: http://y (its token: {folder}/run/ray-token)" in told
    assert f"in another terminal: export FARM_DATA='{folder}'" in told
    assert "it asks for a key of /etc/keys.json: export FARM_API_KEY=…" in told


def test_doctor_makes_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("REDIS_URL", "FARM_STORE", "RAY_ADDRESS", "FARM_CHECKPOINTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FARM_URL", "http://127.0.0.1:1")
    data = tmp_path / "data"
    assert run(["doctor", "--data", str(data)]) == 1
    assert "is not there yet (farm up makes it)" in capsys.readouterr().out
    assert not data.exists()


def test_the_folder_of_a_farm_is_named_where_people_look(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "~/.local/share/amused-farm" in DATA_HELP
    for command in ("up", "down", "doctor"):
        assert run([command, "--help"]) == 0
        assert "~/.local/share/amused-farm" in re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "~/.local/share/amused-farm" in (ROOT / "README.md").read_text("utf-8")


def test_published_checkpoints_have_short_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(name: str, commit: str) -> Path:
        asked.append((name, commit))
        return tmp_path

    monkeypatch.setattr(references.hub, "fetch", download)
    for name in ("amused-256", "amused-512"):
        path, hub = references.resolve(name)
        assert (path, hub) == (tmp_path, asked[-1])
        assert asked[-1][0] == f"amused/{name}"
        assert re.fullmatch(r"[0-9a-f]{40}", asked[-1][1])
    with pytest.raises(InvalidCheckpoint, match="amused-256"):
        references.resolve("amused-1024!")


def test_a_hub_that_does_not_answer_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(**given: Any) -> str:
        asked.append(given["local_files_only"])
        if len(asked) == 1:
            return str(tmp_path)
        raise LocalEntryNotFoundError("not in the cache")

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # nothing listens there
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        assert references.resolve("amused-256")[0] == tmp_path
        shutil.rmtree(tmp_path / "cache")  # where it is noted that all hashes are right
        with pytest.raises(InvalidCheckpoint, match=r"cannot be fetched: .*refused") as caught:
            references.resolve("amused-256")
    assert asked == [True, True]
    assert "give a local directory" in str(caught.value.hint)


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "amused-256").mkdir()
    assert references.resolve("amused-256") == (tmp_path / "amused-256", None)
