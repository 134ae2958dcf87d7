"""Pieces of the command line that need no farm."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from farm.cli import main
from farm.cli.app import COMMANDS, run
from farm.cli.columns import Columns
from farm.cli.input_files import looks_like_file
from farm.cli.output import one_line, printable
from farm.cli.parse_values import parameter_named, parse_value
from farm.cli.watch import Rate, _rate_text
from farm.errors import InvalidInput
from farm.spec import CheckpointInfo, RenderRequest

INFO = CheckpointInfo(
    id="owner/tiny", revision="1", pixel_factor=8, size_multiple=8, native_height=64,
    native_width=64, default_guidance=4.0, vocab_size=72, codebook_size=64, mask_token_id=71,
    text_tokens=77, pooled_dim=8, hidden_dim=8,
)  # fmt: skip


@pytest.mark.parametrize(
    ("column", "parameter"),
    [
        ("Prompt", "prompt"), (" negative prompt ", "negative_prompt"),
        ("steps", None), ("num_images_per_prompt", "num_images"), ("", None), ("caption", None),
        ("Guidance-Scale", "guidance_scale"), ("mask", None),
    ],
)  # fmt: skip
def test_a_column_is_known_by_its_name(column: str, parameter: str | None) -> None:
    assert parameter_named(column) == parameter


@pytest.mark.parametrize(
    ("parameter", "text", "value"),
    [
        ("seed", "7", 7), ("height", " 64 ", 64), ("num_images", "2.0", 2),
        ("guidance_scale", "3.5", 3.5), ("strength", "1", 1), ("temperature", "2", 2),
        ("temperature", "2,0.5", [2, 0.5]), ("temperature", "[2, 0]", [2, 0]),
        ("temperature", "[2]", [2]), ("micro_conditioning_crop_coord", "(0, 8)", [0, 8]),
        ("adapters", "a:0.5 b,c", [
            {"adapter": "a", "scale": 0.5}, {"adapter": "b"}, {"adapter": "c"},
        ]),
        ("adapters", f"sha256:{'a' * 64}", [{"adapter": f"sha256:{'a' * 64}"}]),
        ("prompt", " as it is ", " as it is "), ("prompt", "7", "7"), ("mode", "x", "x"),
    ],
)  # fmt: skip
def test_a_cell_becomes_its_parameters_type(parameter: str, text: str, value: object) -> None:
    assert parse_value(parameter, text) == value


@pytest.mark.parametrize(
    ("parameter", "text"),
    [("seed", "abc"), ("height", "2.5"), ("guidance_scale", "NaN"), ("strength", "inf"),
     ("temperature", ""), ("temperature", "a,b"), ("seed", "9" * 5000)],
)  # fmt: skip
def test_a_cell_that_is_no_number_is_named(parameter: str, text: str) -> None:
    with pytest.raises(InvalidInput) as error:
        parse_value(parameter, text)
    assert error.value.field == parameter
    assert len(str(error.value)) < 200


def test_words_and_files_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my prompts.csv").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "data").write_text("")
    (tmp_path / "cat").write_text("")
    files = (
        "x.jsonl", "none.CSV", "my prompts.csv", "folder", "folder/data", "cat", "none.jsonl.gz",
        "-", "job.yaml", "x" * 300 + ".jsonl",
    )  # fmt: skip
    for file in files:
        assert looks_like_file(file), file
    for prompt in ("", "dog", "a cat.", "a file named x.txt", "either/or", "x" * 5000, "a\0b"):
        assert not looks_like_file(prompt), prompt


def test_the_prompts_column_can_be_named() -> None:
    table = Columns.parse(["caption"]).table(["id", "caption", "prompt", "seed", ""])
    assert table.parameters == {1: "prompt", 3: "seed"}
    assert table.kept == {0: "id", 2: "prompt"}


def test_the_rate_is_that_of_the_last_while() -> None:
    now = [0.0]
    rate = Rate(lambda: now[0])
    rate.add(0)
    assert rate.value is None
    for _ in range(100):
        now[0] += 1
        rate.add(int(now[0]) * 5)
    assert rate.value == 5
    assert _rate_text(5, 100) == "5.0/s, 0:20 left"
    assert _rate_text(0.5, 3600) == "0.5/s, 2:00:00 left"
    assert _rate_text(None, 3600) == ""


def test_control_characters_are_shown() -> None:
    assert printable("a\x1b[31m\u202eb") == "a\\x1b[31m\\u202eb"
    assert printable("gr\u00fcn \ud800") == "gr\u00fcn \\ud800"
    assert one_line("a\nb") == "a\\nb"


@pytest.mark.parametrize("name", [n for n, p in COMMANDS.items() if n not in ("bench", "workers")])
def test_every_command_has_a_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    assert f"Usage: farm {name}" in capsys.readouterr().out


def test_help_shows_words_and_no_types(capsys: pytest.CaptureFixture[str]) -> None:
    commands = [[name] for name in COMMANDS]
    commands += [["workers", "drain"], ["checkpoint", "make-tiny"], ["queue", "weight"]]
    for command in commands:
        assert run([*command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert not re.search(r"<\w+|[{}]|x[<>]=|\[default|\[env|\[required", shown), shown


def test_help_says_limits_defaults_and_variables(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*command: str) -> str:
        assert run([*command, "--help"]) == 0
        return " ".join(capsys.readouterr().out.split())

    fetch = shown("fetch")
    assert "Usage: farm fetch [OPTIONS] JOB " in fetch
    assert "-o, --output DIR Folder to write to; made if missing. Required." in fetch
    assert "--parallel N Downloads at a time (1 to 64). Default: 8." in fetch
    assert "Default: --wait." in fetch
    assert "Default: FARM_SIGN_KEY." in fetch
    assert "on 127.0.0.1 (1 to 65,535). Default: 8400." in shown("up")
    assert "One of png, webp, jpeg, tokens. Default: png." in shown("export")
    assert "Usage: farm du [OPTIONS] [JOB\u2026]" in shown("du")


def test_an_interruption_at_the_very_start_has_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "farm.cli.app")
    monkeypatch.setattr(sys, "meta_path", [SimpleNamespace(find_spec=interrupted)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            OSError(36, "File name too long", "x.png"),
            "[farm]: x.png: File name too long (FARM_DEBUG",
        ),
        (
            OSError(28, "No space left on device"),
            "[farm]: No space left on device (the disk is full",
        ),
        (OSError(107, "Transport endpoint is not connected"), "[internal]: OSError: "),
        (ValueError("a\nb"), "[internal]: ValueError: a (FARM_DEBUG=1 shows where)"),
    ],
)
def test_what_nobody_foresaw_is_one_line(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr("farm.cli.app.group", fails)
    assert run(["ls"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error{told}")


def test_a_checkpoint_that_cannot_be_written_leaves_no_half_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    folder = tmp_path / "tiny"
    monkeypatch.setattr(Path, "write_bytes", full)
    assert run(["checkpoint", "make-tiny", str(folder)]) == 2
    assert "(the disk is full: " in capsys.readouterr().err
    assert not folder.exists()


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    assert "Jobs:" in capsys.readouterr().out
    assert run(["--version"]) == 0


def test_a_tiny_checkpoint_never_overwrites(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert run(["checkpoint", "make-tiny", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_a_picture_says_what_made_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from farm.formats.encoding import encode
    from farm.formats.picture_file import Facts
    from farm.job import Format

    monkeypatch.chdir(tmp_path)
    request = RenderRequest(prompt="a red bicycle", seed=7)
    facts = Facts(request.resolve(INFO, seed=0), 1, "cpu", np.zeros((8, 8), np.uint16))
    for format_ in (Format.PNG, Format.WEBP, Format.JPEG, Format.TOKENS):
        Path("picture").write_bytes(encode(np.zeros((64, 64, 3), np.uint8), facts, format_))
        assert run(["inspect", "picture", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["seed"], told["image"], told["tokens"]) == (8, 1, [8, 8])
        assert told["spec"]["prompt"] == "a red bicycle"
    assert run(["inspect", "picture"]) == 0
    assert "bicycle" in capsys.readouterr().out
