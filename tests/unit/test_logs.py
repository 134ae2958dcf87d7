"""How the farm's processes log."""

import json
import logging
import threading
from pathlib import Path

import pytest

from farm import logs
from farm.errors import InvalidInput

NASTY = "a dog\n2026-01-01 ERROR forged\x1b[2J\u202e\x00"


@pytest.fixture
def log() -> logging.Logger:
    return logging.getLogger("farm.test")


def configure(process: str, *, file: Path | None = None) -> None:
    """Leaves out what gateways say that other tests have started in this process."""
    logs.configure(process, file=file)
    for handler in logging.getLogger().handlers:
        handler.addFilter(logging.Filter("farm.test"))


def test_what_a_user_wrote_cannot_begin_a_line_or_move_the_cursor(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("gateway")
    log.warning("a render failed: %s", NASTY)
    told = capsys.readouterr().err
    assert told.endswith("\n")
    [line] = told.splitlines()
    assert " WARNING gateway a render failed: a dog\\n2026-01-01 ERROR forged\\x1b[2J" in line
    assert line.isprintable()


def test_a_traceback_begins_no_line_of_its_own(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("gateway")
    try:
        raise ValueError(NASTY)
    except ValueError:
        log.exception("it failed")
    first, *others = capsys.readouterr().err.splitlines()
    assert first.endswith(" ERROR gateway it failed")
    assert "  ValueError: a dog" in others
    assert all(line.startswith("  ") and line.isprintable() for line in others)


def test_json_lines_have_what_a_line_is_about(
    log: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_LOG_FORMAT", "json")
    configure("worker-0")
    log.info("task %s: %s", "j0-x/0/1", NASTY, extra={"job": "j0-x", "task": "j0-x/0/1"})
    try:
        raise ValueError(NASTY)
    except ValueError:
        log.exception("it failed")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first["message"] == f"task j0-x/0/1: {NASTY}"
    assert (first["job"], first["task"], first["process"]) == ("j0-x", "j0-x/0/1", "worker-0")
    assert (first["level"], first["logger"]) == ("info", "farm.test")
    assert "session" not in first
    assert "ValueError" in second["traceback"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_lines_of_a_request_carry_its_id(
    form: str,
    log: logging.Logger,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FARM_LOG_FORMAT", form)
    configure("gateway")
    with logs.request("abc123"):
        log.info("inside")
        other = threading.Thread(target=log.info, args=("of another",))
        other.start()
        other.join()
    log.info("outside")
    inside, another, outside = capsys.readouterr().err.splitlines()
    assert "abc123" in inside
    assert "abc123" not in another
    assert "abc123" not in outside


def test_a_file_gets_the_same_lines_and_one_that_cannot_be_written_is_passed_over(
    log: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("worker-0", file=tmp_path / "worker-0.log")
    log.info("here")
    told = capsys.readouterr().err
    assert told.endswith(" INFO worker-0 here\n")
    assert (tmp_path / "worker-0.log").read_text() == told
    configure("worker-0", file=tmp_path / "nowhere" / "worker-0.log")
    log.info("there")
    assert capsys.readouterr().err.endswith(" INFO worker-0 there\n")


def test_an_unknown_format_is_refused_by_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FARM_LOG_FORMAT", "xml")
    with pytest.raises(InvalidInput, match="xml") as refused:
        configure("gateway")
    assert refused.value.field == "FARM_LOG_FORMAT"
