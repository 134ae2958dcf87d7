"""Draws which room of the code imports which, as Markdown: ``docs/packages.md``.

``make graph`` writes the page; a unit test says when it is out of date. Imports are found by grimp,
which also serves import-linter.
"""

import tomllib
from collections import Counter
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "packages.md"
PACKAGES = ("farm", "farm_client", "farm_workers")

HEAD = """\
# The packages

Made by `make graph`; do not edit it. A room is a folder or a module directly below `farm` or
`farm_workers`; `farm_client` is one room. The number on an arrow, and behind a name in the table,
counts the imports of a module of one room by a module of the other. The layers are those of the
contract in `pyproject.toml`, which `lint-imports` enforces: a room imports only from layers below
its own.
"""


def room(module: str) -> str | None:
    """``farm.store.s3`` is in ``farm.store``; the package ``farm`` itself is in no room."""
    parts = module.split(".")
    if parts[0] == "farm_client":
        return "farm_client"
    return ".".join(parts[:2]) if len(parts) > 1 else None


def rooms(graph: grimp.ImportGraph) -> Counter[str]:
    """The rooms, with how many modules each has."""
    return Counter(name for module in graph.modules if (name := room(module)))


def build() -> grimp.ImportGraph:
    """Who imports whom in the three packages."""
    return grimp.build_graph(*PACKAGES, cache_dir=None)


def layers() -> list[list[str]]:
    """The rooms of each layer, the top one first, as the import contract has them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (contract,) = [one for one in contracts if one["type"] == "layers"]
    return [[name.strip() for name in layer.split("|")] for layer in contract["layers"]]


def arrows(graph: grimp.ImportGraph) -> Counter[tuple[str, str]]:
    """How many modules import a module of another room, by (importing room, imported room)."""
    found: Counter[tuple[str, str]] = Counter()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            source, target = room(module), room(imported)
            if source and target and source != target:
                found[source, target] += 1
    return found


def page(graph: grimp.ImportGraph) -> str:
    """The whole page."""
    found = arrows(graph)
    folders = {name for name in rooms(graph) if graph.find_children(name)}
    return "\n".join([HEAD, *_diagram(found, folders), "", *_table(found, rooms(graph))]) + "\n"


def _diagram(found: Counter[tuple[str, str]], folders: set[str]) -> list[str]:
    lines = [
        "The folders, without the single modules, which most of them import:",
        "",
        "```mermaid",
        "flowchart TD",
    ]
    for layer in layers():
        lines += [f"  {_id(name)}[{name}]" for name in layer if name in folders]
    for importer, imported in sorted(found):
        if {importer, imported} <= folders:
            count = found[importer, imported]
            lines.append(f"  {_id(importer)} -->|{count}| {_id(imported)}")
    return [*lines, "```"]


def _table(found: Counter[tuple[str, str]], sizes: Counter[str]) -> list[str]:
    lines = [
        f"All {len(found)} arrows, from the top layer to the bottom one:",
        "",
        "| layer | room | modules | imports |",
        "|---|---|---|---|",
    ]
    order = [name for layer in layers() for name in layer]
    for level, layer in enumerate(layers(), 1):
        for name in layer:
            targets = [to for to in order if found[name, to]]
            imports = ", ".join(f"{to} {found[name, to]}" for to in targets) or "nothing"
            lines.append(f"| {level} | {name} | {sizes[name]} | {imports} |")
    return lines


def _id(name: str) -> str:
    return name.replace(".", "_")


if __name__ == "__main__":
    PAGE.write_text(page(build()), encoding="utf-8")
