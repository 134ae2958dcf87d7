"""A hook of mkdocs: the pages outside of docs/, and references made from the code.

Links are written for readers of the repository; on the site they are turned to where a page or a
file is there.
"""

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import docs_reference  # noqa: E402  (mkdocs loads this file without its folder)

OUTSIDE = (
    "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "infra/README.md", "tools/shapes/README.md",
    "bench/engine.md", "bench/overhead.md", "bench/page.md", "bench/queue.md", "bench/recovery.md",
)  # fmt: skip
HOME = "index.md"  # the README's place on the site
LINK = re.compile(r"(\]\()(?!https?:|#|mailto:)([^)#\s]+)([^)]*\))")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add what is not in docs/: pages, what pages link to, and the references."""
    for path in ("README.md", *OUTSIDE):
        place = site_path(path)
        files.append(File.generated(config, place, content=(ROOT / path).read_text("utf-8")))
    for place, text in docs_reference.pages().items():
        files.append(File.generated(config, place, content=text))
    for path in sorted(linked_files(files)):
        files.append(File.generated(config, site_path(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = page.file.src_uri

    def turned(match: re.Match[str]) -> str:
        target = repository_target(here, match[2])
        if target is None or not (ROOT / target).exists():
            return match[0]  # mkdocs says what is wrong with it
        return f"{match[1]}{relative(here, site_path(target))}{match[3]}"

    return LINK.sub(turned, markdown)


def linked_files(files: Files) -> set[str]:
    """Files of the repository that pages link to and that are not on the site yet."""
    there = {file.src_uri for file in files}
    found = set()
    for page in files.documentation_pages():
        for _, link, _ in LINK.findall(page.content_string):
            target = repository_target(page.src_uri, link)
            if target and (ROOT / target).is_file() and site_path(target) not in there:
                found.add(target)
    return found


def site_path(path: str) -> str:
    """Where a file of the repository is on the site."""
    return HOME if path == "README.md" else path.removeprefix("docs/")


def repository_target(page: str, link: str) -> str | None:
    """What a link on a page of the site meant in the repository; None for what is made here."""
    if page.startswith("reference/"):
        return None
    source = "README.md" if page == HOME else page
    if page != HOME and page not in OUTSIDE:
        source = f"docs/{page}"
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def relative(page: str, target: str) -> str:
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


def on_config(config: MkDocsConfig, **_: Any) -> MkDocsConfig:
    config.watch.append(str(ROOT / "README.md"))
    return config
