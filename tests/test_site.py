"""The site: every link and page is there, and nothing is loaded from other hosts."""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")


def build(root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(out)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, env=quiet, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    end = build(root, out)
    assert not end.returncode, end.stderr
    return out


class Loaded(HTMLParser):
    """What a browser fetches for a page, without being asked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag != "a" and given.get("rel") != "canonical":
            self.found += [value for name in ("src", "href", "data") if (value := given.get(name))]


def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        loaded = Loaded(page.read_text()).found
        assert len(loaded) > 3
        assert not [path for path in loaded if re.match("(https?:)?//", path)], page


def test_links_outside_the_pages_lead_to_copies(site: Path) -> None:
    page = site / "robot" / "reference.html"
    (link,) = re.findall(r'href="([^"]*mega\.yaml\.txt)"', page.read_text())
    assert "ros__parameters" in (page.parent / link).read_text()


def test_broken_links_missing_pages_and_new_diagrams_end_the_build(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    (copy / "docs").mkdir(parents=True)
    shutil.copytree(root / "scripts", copy / "scripts")
    shutil.copy(root / "mkdocs.yml", copy / "mkdocs.yml")
    links = ("nowhere.md", "#nowhere", "../config/nowhere.yaml")
    diagram = "```mermaid\nflowchart LR\n    new --> diagram\n```"
    (copy / "docs" / "index.md").write_text("\n".join(["# Start", *(f"[nothing]({link})" for link in links), diagram]))
    (copy / "docs" / "alone.md").write_text("# In no menu")
    end = build(copy, tmp_path / "out")
    assert end.returncode
    for name in (*links, "alone.md", "robot/node.md", "scripts/draw_diagrams.py"):
        assert name in end.stderr, name


def test_links_of_the_readme_lead_to_files(root: Path) -> None:
    text = (root / "README.md").read_text()
    links = {link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link}
    assert len(links) > 15
    assert not [link for link in links if not (root / link).exists()]


def test_diagrams_are_drawn_and_none_is_left_over(root: Path, site: Path) -> None:
    shown = {path for page in site.rglob("*.html") for path in re.findall(r"diagrams/(\w+\.svg)", page.read_text())}
    assert len(shown) > 3
    assert shown == {path.name for path in (root / "docs" / "images" / "diagrams").iterdir()}
