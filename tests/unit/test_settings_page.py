"""docs/settings.md has every variable that the code reads, once, with its default."""

import ast
import re
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from farm.scheduler.settings import SchedulerSettings
from farm.settings import GatewaySettings
from farm_workers.worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
SOURCES = [
    file for folder in ("farm", "client", "workers") for file in (ROOT / folder).rglob("*.py")
]
_NAME = re.compile(r"`((?:FARM|REDIS|RAY|AWS|OTEL|SSL|HF|CUDA)_[A-Z_]+)`")


def page() -> dict[str, str]:
    """The variables of its tables and of its last section, each with its default in words."""
    text = (ROOT / "docs" / "settings.md").read_text("utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    told = [(name, row[1]) for row in rows for name in _NAME.findall(row[0])]
    told += [(name, "") for name in _NAME.findall(text.partition("## Not for people")[2])]
    assert [name for name, times in Counter(name for name, _ in told).items() if times > 1] == []
    return dict(told)


def settings() -> dict[str, FieldInfo]:
    models = (GatewaySettings, SchedulerSettings, WorkerSettings)
    fields = {name: field for model in models for name, field in model.model_fields.items()}
    bare = {"redis_url": "REDIS_URL", "ray_address": "RAY_ADDRESS"}
    return {bare.get(name, f"FARM_{name.upper()}"): field for name, field in fields.items()}


def named_in_code() -> set[str]:
    """Texts that are a variable's name and nothing else."""
    found = set()
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set(re.findall(r"^FARM_[A-Z_]+$", node.value))
    return found


def in_words(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if isinstance(value, int) and value >= size and value % size == 0:
            return f"{value // size} {unit}"
    return f"{value:.15g}" if isinstance(value, int | float) else str(value)


def test_every_variable_is_on_the_page_and_no_other() -> None:
    own = {name for name in page() if name.startswith("FARM_")}
    assert own == {name for name in settings() if name.startswith("FARM_")} | named_in_code()
    assert settings().keys() <= page().keys()


def test_the_defaults_on_the_page_are_the_codes() -> None:
    told = page()
    wrong = {
        name: told[name]
        for name, field in settings().items()
        if isinstance(field.default, str | int | float)
        and field.default != ""
        and told[name].replace(",", "") != in_words(field.default)
    }
    assert wrong == {"FARM_STUB": ""}  # not for people
