"""The oldest versions that ``pyproject.toml`` allows, as constraints for pip: ``make lowest``.

torch alone is as in ``constraints.txt``: its older wheels bring gigabytes for GPUs. With its oldest
version the engine ran on a GPU, see ``bench/engine.md``.
"""

import itertools
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
BOUND = re.compile(r"^([a-z0-9-]+)(?:\[.*\])?(?:>=([0-9.]+))?", re.MULTILINE)


def bounds(extras: tuple[str, ...] = ()) -> dict[str, str | None]:
    """The lower bound of each dependency that the farm itself or one of the extras needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = project["optional-dependencies"]
    needed = [project["dependencies"], *(named[extra] for extra in extras or named)]
    found: dict[str, str | None] = {}
    for name, bound in BOUND.findall("\n".join(itertools.chain(*needed))):
        found[name] = bound or found.get(name)
    return {name: bound for name, bound in found.items() if name != project["name"]}


def pins() -> dict[str, str]:
    """What ``constraints.txt`` installs."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


if __name__ == "__main__":
    for name, version in {**bounds(), "torch": pins()["torch"]}.items():
        if version is not None:
            print(f"{name}=={version}")
