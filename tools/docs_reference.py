"""References for the site, made from the code: the command line, the SDK, HTTP and the alerts."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from typer.core import TyperGroup

import farm_client
from farm.cli.app import SECTIONS, group
from farm.cli.help import records
from farm.gateway.app import create_app
from farm.gateway.openapi import answer_of, in_words
from farm.settings import GatewaySettings

ROOT = Path(__file__).parents[1]
ALERTS = ROOT / "infra" / "prometheus" / "alerts.yml"


def pages() -> dict[str, str]:
    """The pages' Markdown, by their path on the site."""
    return {
        "reference/cli.md": cli(),
        "reference/sdk.md": sdk(),
        "reference/http.md": http(),
        "reference/alerts.md": alerts(),
    }


def cli() -> str:
    lines = ["# Command line", "", "`farm COMMAND --help` says the same."]
    commands = group()
    for section, names in SECTIONS.items():
        lines += ["", f"## {section}"]
        for name in names:
            context = commands.make_context("farm", [], resilient_parsing=True)
            if (command := commands.get_command(context, name)) is not None:
                lines += _command(f"farm {name}", command)
    return "\n".join(lines) + "\n"


def _command(name: str, command: Any) -> Iterator[str]:
    yield from ("", f"### {name}", "", " ".join((command.help or "").split()))
    if isinstance(command, TyperGroup):
        for inner in sorted(command.commands):
            yield from _command(f"{name} {inner}", command.commands[inner])
        return
    context = command.make_context(name, [], resilient_parsing=True)
    found = records(command.get_params(context))
    if found:
        yield from ("", "| | |", "|---|---|")
    for flags, told in found:
        yield f"| `{' '.join(flags.split())}` | {_cell(told)} |"


def sdk() -> str:
    """The farm, its jobs and pictures first; records and errors follow."""
    first = ("Farm", "Job", "Image", "Preview", "AsyncFarm", "AsyncJob", "AsyncImage")
    found = {name: getattr(farm_client, name) for name in (*first, *farm_client.__all__)}
    classes = {name: kind for name, kind in found.items() if isinstance(kind, type)}
    errors = [name for name, kind in classes.items() if issubclass(kind, Exception)]
    records = [name for name in classes if name not in (*first, *errors)]
    calls = [*first, *(name for name in found if name not in classes)]
    lines = ["# Python SDK", "", "Everything that `farm_client` exports."]
    for title, names in (("Calls", calls), ("Records", records), ("Errors", errors)):
        lines += ["", f"## {title}"]
        for name in names:
            lines += ["", f"### {name}", "", f"::: {found[name].__module__}.{name}"]
            if name in errors:
                lines += ["    options:", "      members: false", "      inherited_members: false"]
    return "\n".join(lines) + "\n"


def http() -> str:
    """From the description that the gateway gives at ``/openapi.json``."""
    with tempfile.TemporaryDirectory() as folder:
        settings = GatewaySettings.model_validate(
            {"data": folder, "open": True, "redis_url": f"unix://{folder}/none"}
        )
        described = create_app(settings).openapi()
    lines = [
        "# HTTP API", "",
        "The gateway shows this page at `/docs`, and its machine-readable form at `/openapi.json`.",
    ]  # fmt: skip
    for path, methods in described["paths"].items():
        for method, facts in methods.items():
            lines += ["", f"## {method.upper()} {path}", "", facts.get("description", "")]
            given = [one for one in facts.get("parameters", ()) if one["in"] != "path"]
            if given:
                lines += ["", "| parameter | | |", "|---|---|---|"]
            for one in given:
                needed = "required" if one.get("required") else ""
                told = _cell(one.get("description", ""))
                lines.append(f"| `{one['name']}` | {one['in']} {needed} | {told} |")
            lines += ["", f"Answer: `{answer_of(facts)}`"]
    for name, schema in sorted(described["components"]["schemas"].items()):
        lines += ["", f"## {name}", "", schema.get("description", "")]
        if "enum" in schema:
            lines += ["", in_words(schema)]
        fields = schema.get("properties", {}).items()
        if fields:
            lines += ["", "| field | | |", "|---|---|---|"]
        for field, told in fields:
            words = _cell(told.get("description", ""))
            lines.append(f"| `{field}` | {in_words(told)} | {words} |")
    return "\n".join(lines) + "\n"


def alerts() -> str:
    """From the rules for Prometheus."""
    lines = ["# Alerts", "", f"The rules of `{ALERTS.relative_to(ROOT)}`."]
    for rules in yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]:
        for rule in rules["rules"]:
            notes = rule.get("annotations", {})
            lines += [
                "", f"## {rule['alert']}", "", f"{notes.get('summary', '')}.", "",
                f"**What to do:** {notes.get('action', '')}", "",
                "```", " ".join(rule["expr"].split()), "```", "",
                f"Fires {_after(rule.get('for'))}; {rule['labels']['severity']}.",
            ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _after(duration: str | None) -> str:
    return f"when it has been so for {duration}" if duration else "at once"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
