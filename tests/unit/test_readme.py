"""The README names what is there, and all of it."""

import re
from pathlib import Path

from farm.cli.app import COMMANDS
from farm.spec import RenderRequest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_every_parameter_of_a_render_is_in_the_table() -> None:
    named = set(re.findall(r"`(\w+)`", README))
    assert set(RenderRequest.model_fields) - {"checkpoint"} <= named


def test_every_command_in_the_readme_exists() -> None:
    shown = set(re.findall(r"^(?:\.venv/bin/)?farm ([a-z]+)", README, flags=re.MULTILINE))
    assert shown
    assert shown <= set(COMMANDS)


def test_every_link_to_a_file_leads_somewhere() -> None:
    root = Path(__file__).parents[2]
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert [link for link in links if not (root / link).exists()] == []
