"""The pages name files, names and headings that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [page for folder in ("", "docs", "bench") for page in sorted((ROOT / folder).glob("*.md"))]
# What a path on a page may be relative to, besides the root.
FOLDERS = ("workers/farm_workers", "farm/queue/lua", "tests", "bench")
UPSTREAM = re.compile(r"tests/pipelines/.*|test_amused\w*\.py")  # diffusers' own
_FOLDER = r"(?:farm|client|workers|tests|tools|bench|docs|engine|worker|publisher|testing)/"
_SOURCE = re.compile(
    rf"`((?:[\w.-]+/)*[\w.-]+\.(?:py|lua)|{_FOLDER}(?:[\w.-]+/)+)`?(?:(?: `|::)(\w+)`)?"
)
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]+))?\)")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def find(name: str) -> Path | None:
    places = (ROOT / name, *(ROOT / folder / name for folder in FOLDERS))
    return next((place for place in places if place.exists()), None)


def named(page: Path) -> list[tuple[str, str]]:
    """Path and name, where one is given, of all that a page looks for in the sources."""
    found = _SOURCE.findall(page.read_text("utf-8"))
    return [(path, name) for path, name in found if not UPSTREAM.fullmatch(path)]


def anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


@pages
def test_every_source_file_that_a_page_names_exists(page: Path) -> None:
    assert sorted({path for path, _ in named(page) if find(path) is None}) == []


@pages
def test_every_name_that_a_page_looks_for_in_a_file_is_in_it(page: Path) -> None:
    wrong = []
    for path, name in named(page):
        file = find(path)
        if name and file and file.is_file():
            defined = rf"^\s*(?:async )?(?:local )?(?:def|class|function) {name}\b|^{name}\b"
            if not re.search(defined, file.read_text("utf-8"), re.MULTILINE):
                wrong.append(f"{path} {name}")
    assert wrong == []


@pages
def test_every_link_to_a_file_or_a_heading_leads_somewhere(page: Path) -> None:
    wrong = []
    for path, heading in _LINK.findall(page.read_text("utf-8")):
        target = page.parent / path if path else page
        if not target.exists():
            wrong.append(path)
        elif heading:
            lines = target.read_text("utf-8").splitlines()
            if heading not in {anchor(line.lstrip("#")) for line in lines if line.startswith("#")}:
                wrong.append(f"{path}#{heading}")
    assert wrong == []
