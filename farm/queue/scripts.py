"""The Lua scripts: one transition per file, assembled with the parts that it requires.

A file names its parts in lines ``-- requires: job_record, leases``; a part may require others. The
part ``constants`` is not a file: it holds what Python defines.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable

from farm.queue.constants import (
    CLASSES,
    MAX_ROWS,
    MAX_TENANT_LANES,
    PATIENCE_MS,
    RETENTION_MS,
    SCHEMA,
    SETTLED_MS,
)

_REQUIRES = re.compile(r"^-- requires: (.*)$", re.MULTILINE)
_FOLDER = resources.files("farm.queue") / "lua"


@functools.cache
def read_scripts() -> Mapping[str, str]:
    """Name → source, ready to be loaded."""
    parts = read_parts()
    return {name: assemble(source, parts) for name, source in read_bodies().items()}


@functools.cache
def read_parts() -> Mapping[str, str]:
    """Name → source of what scripts may require."""
    return {"constants": _constants(), **_read(_FOLDER / "parts")}


@functools.cache
def read_bodies() -> Mapping[str, str]:
    """Name → source of the scripts, without their parts."""
    return _read(_FOLDER)


def assemble(source: str, parts: Mapping[str, str]) -> str:
    """A script with its parts before it, each once and after those that it requires.

    Raises:
        ValueError: a part is unknown, or requires itself.
    """
    flags, _, body = source.partition("\n")  # Redis reads the flags from the first line
    return "\n".join([flags, *(parts[name] for name in order_parts(body, parts)), body])


def order_parts(source: str, parts: Mapping[str, str]) -> Sequence[str]:
    """Names of the parts that a source requires, and that those require, in order of assembly.

    Raises:
        ValueError: a part is unknown, or requires itself.
    """
    ordered: list[str] = []

    def add(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ValueError(f"Lua parts require each other: {' -> '.join([*path, name])}")
        if name not in parts:
            asked = f"; {path[-1]} requires it" if path else ""
            raise ValueError(f"there is no Lua part {name!r}{asked}")
        if name not in ordered:
            for required in requires(parts[name]):
                add(required, (*path, name))
            ordered.append(name)

    for name in requires(source):
        add(name, ())
    return ordered


def requires(source: str) -> list[str]:
    """The parts that a source names."""
    lines = ",".join(_REQUIRES.findall(source))
    return [name.strip() for name in lines.split(",") if name.strip()]


def _constants() -> str:
    names = ", ".join(priority.name for priority in CLASSES)
    places = ", ".join(str(place) for place in range(len(CLASSES)))
    numbers = {
        "MAX_ROWS": MAX_ROWS,
        "MAX_TENANT_LANES": MAX_TENANT_LANES,
        "SCHEMA": SCHEMA,
        "RETENTION": RETENTION_MS,
        "PATIENCE": PATIENCE_MS,
        "SETTLED": SETTLED_MS,
    }
    lines = [f"local {names} = {places}"]
    lines += [f"local {name} = {value}" for name, value in numbers.items()]
    return "\n".join(lines) + "\n"


def _read(folder: Traversable) -> dict[str, str]:
    return {
        file.name.removesuffix(".lua"): file.read_text(encoding="utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".lua")
    }
