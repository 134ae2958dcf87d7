"""The site is built from pages and code, loads nothing from outside, and has no dead link."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-2000:]
    return folder


def test_it_loads_nothing_from_outside(site: Path) -> None:
    outside = {
        (page.name, address)
        for page in site.rglob("*.html")
        for address in re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="([^"]+)"', page.read_text())
        + re.findall(r'<link[^>]*rel="(?:stylesheet|icon)"[^>]*href="([^"]+)"', page.read_text())
        if address.startswith(("http:", "https:", "//"))
    }
    assert outside == set()


def test_the_references_have_every_command_route_and_class(site: Path) -> None:
    def text(name: str) -> str:
        return (site / "reference" / name).read_text("utf-8")

    assert "--num-inference-steps" in text("cli.html")
    assert "farm queue weight" in text("cli.html")
    assert "GET /v1/jobs/{job}/previews" in text("http.html")
    assert "list of Image" in text("http.html")
    assert "submit_many" in text("sdk.html")


def test_links_of_the_repository_lead_to_pages_of_the_site(site: Path) -> None:
    home = (site / "index.html").read_text("utf-8")
    assert 'href="inputs.html"' in home
    assert 'href="bench/engine.html"' in home
    assert 'src="demo.png"' in home
    assert (site / "demo.png").is_file()
    assert 'href="index.html#parameters"' in (site / "inputs.html").read_text("utf-8")
