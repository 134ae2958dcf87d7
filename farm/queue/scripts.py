"""The Lua scripts: one transition a file, with the common parts it names put before it."""

import functools
import re
from collections.abc import Mapping
from importlib import resources

_WITH = re.compile(r"^-- with: (.*)$", re.MULTILINE)


@functools.cache
def read_scripts() -> Mapping[str, str]:
    """Name → source, ready to be loaded."""
    folder = resources.files("farm") / "lua"
    common = {
        part.name.removesuffix(".lua"): part.read_text(encoding="utf-8")
        for part in (folder / "common").iterdir()
        if part.name.endswith(".lua")
    }
    return {
        file.name.removesuffix(".lua"): assemble(file.read_text(encoding="utf-8"), common)
        for file in folder.iterdir()
        if file.name.endswith(".lua")
    }


def assemble(source: str, common: Mapping[str, str]) -> str:
    """A script with its parts; the line with its flags must stay the first."""
    flags, _, body = source.partition("\n")
    named = _WITH.search(body)
    parts = ["records", *(named[1].split() if named else ())]
    return "\n".join([flags, *(common[part] for part in parts), body])
