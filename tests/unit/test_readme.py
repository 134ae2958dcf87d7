"""The README names what is there, and all of it."""

import re
from pathlib import Path

from farm.cli.app import COMMANDS
from farm.spec import PARAMETERS, RenderRequest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def table_row(name: str) -> str:
    """Pipelines' names, the farm's name, default, what is allowed."""
    parameter, field = PARAMETERS[name], RenderRequest.model_fields[name]
    pipelines = (name,) if parameter.pipelines is None else parameter.pipelines
    named = ", ".join(f"`{one}`" for one in pipelines)
    allowed = "; ".join(filter(None, (parameter.limits, parameter.allowed)))
    default = parameter.default_text(field)
    return f"| {named} | `{name}` | {default} | {allowed} |".replace("  ", " ")


def test_the_table_of_parameters_is_the_one_that_the_farm_checks_by() -> None:
    table = README.split("### Parameters")[1].split("###")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    expected = [table_row(name) for name in PARAMETERS]
    assert rows[1 : len(expected) + 1] == expected


def test_every_command_in_the_readme_exists() -> None:
    shown = set(re.findall(r"^(?:\.venv/bin/)?farm ([a-z]+)", README, flags=re.MULTILINE))
    assert shown
    assert shown <= set(COMMANDS)


def test_every_link_to_a_file_leads_somewhere() -> None:
    root = Path(__file__).parents[2]
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert [link for link in links if not (root / link).exists()] == []
