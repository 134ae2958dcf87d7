"""The commands in the pages' blocks are ones that the command line takes."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from farm.cli.app import group

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:^|\$\()((?:\.venv/bin/)?farm [^)\n]*)", re.MULTILINE)


def commands() -> list[tuple[str, str]]:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [
        (page.name, command.removeprefix(".venv/bin/"))
        for page in pages
        for kind, block in BLOCK.findall(page.read_text("utf-8"))
        if kind in ("", "sh")
        for command in COMMAND.findall(block)
        if "…" not in command
    ]


@pytest.mark.parametrize(("page", "text"), commands(), ids=lambda one: str(one)[:60])
def test_a_command_on_a_page_is_understood(page: str, text: str) -> None:
    _, name, *arguments = shlex.split(text, comments=True)
    command = group().get_command(None, name)
    assert command is not None, f"{page}: farm has no command {name}"
    while arguments and arguments[0] in getattr(command, "commands", {}):
        command = command.commands[arguments.pop(0)]
    try:
        command.make_context(name, arguments)  # raises for an unknown option
    except typer.BadParameter as error:
        if "does not exist" not in str(error):  # a file of the example
            raise


def test_pages_have_commands() -> None:
    assert len(commands()) > 30


def test_the_python_on_the_pages_is_python() -> None:
    found = [
        (page.name, block)
        for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
        for kind, block in BLOCK.findall(page.read_text("utf-8"))
        if kind == "python"
    ]
    assert len(found) > 4
    for page, block in found:
        compile(block, page, "exec")


def test_the_operating_guide_has_every_alert() -> None:
    rules = (ROOT / "infra" / "prometheus" / "alerts.yml").read_text("utf-8")
    guide = (ROOT / "docs" / "operating.md").read_text("utf-8")
    alerts = set(re.findall(r"alert: (\w+)", rules))
    assert alerts
    assert set(re.findall(r"`(Farm\w+)`", guide)) == alerts
