"""Check the site that mkdocs builds: no dead link, nothing loaded from other sites, every page in the navigation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.conftest import PATIENCE
from tests.docs.pages import ROOT, pages

LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}
FETCHED = ("stylesheet", "preconnect", "preload", "icon", "dns-prefetch", "modulepreload", "manifest")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site and return its folder."""
    pytest.importorskip("mkdocs", reason="the site needs pip install 'imgcls-search[docs]'")
    folder = tmp_path_factory.mktemp("site") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return folder


class _Page(HTMLParser):
    """The resources that a page loads, its links, and the ids in it that links may point to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.places.add(found.get("id", ""))
        self.loads += re.findall(r"url\((.*?)\)|@import", found.get("style", ""))
        if tag in LOADS and LOADS[tag] in found:
            self.loads.append(found[LOADS[tag]])
        if tag == "link" and found.get("rel", "") in FETCHED:
            self.loads.append(found["href"])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])


def test_nothing_is_loaded_from_another_address(site: Path) -> None:
    built = sorted(site.rglob("*.html"))
    assert len(built) > 40
    for path in built:
        text = path.read_text()
        outside = [each for each in _Page(text).loads if urlsplit(each).netloc or each.startswith("//")]
        assert outside == [], path
        assert not re.search(r"fonts\.g|googletagmanager|google-analytics|cdn|unpkg|jsdelivr", text), path
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", path.read_text()), path


def test_links_and_their_places_are_there(site: Path) -> None:
    seen = {path: _Page(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}
    files = {path for path in site.rglob("*") if path.is_file()}
    count = 0
    for path, page in seen.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path if not parts.path else Path(os.path.normpath(path.parent / unquote(parts.path)))
            target = target if target in files else target / "index.html"
            assert target in files, (path, link)
            if parts.fragment and target in seen:
                assert unquote(parts.fragment) in seen[target].places, (path, link)
            count += 1
    assert count > 1000


def test_every_page_is_in_the_navigation(site: Path) -> None:
    links = {(site / unquote(urlsplit(link).path)).resolve() for link in _Page((site / "index.html").read_text()).links}
    for page in pages():
        if page.name in ("README.md", "docs/index.md"):
            continue
        inside = page.path.relative_to(ROOT / "docs").with_suffix("")
        at = inside.parent if inside.name == "index" else inside
        assert (site / at).resolve() in links, page.name
    for made in ("reference/space", "reference/commands", "how-to", "decisions"):
        assert (site / made).resolve() in links


def test_tutorials_and_questions_are_many_enough(site: Path) -> None:
    questions = [page for page in pages() if page.name.startswith("docs/how-to/")]
    assert len(questions) >= 25
    for page in questions:
        title = re.search(r"^# (.+)$", page.path.read_text(), re.MULTILINE)
        assert title is not None
        assert title.group(1).endswith("?"), page.name
    tutorials = ["fine-tune", "small-data", "compress", "several-objectives", "cluster", "self-supervised"]
    assert all((site / "tutorials" / name / "index.html").is_file() for name in tutorials)


def test_every_test_that_a_fault_names_is_there() -> None:
    written = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    names = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    rows = [line for line in (ROOT / "docs/what-can-break.md").read_text().splitlines() if line.startswith("|")]
    named = [name for row in rows if " | " in row for name in re.findall(r"`([\w/]*test_\w+)(?:\.\.\.|\[|`)", row)]
    assert len(named) > 100
    for name in named:
        is_file = name.rpartition("/")[2] in names
        assert is_file or re.search(rf"def {name}", written), name
