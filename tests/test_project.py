"""The project as a whole: the layers, the house's page, the decision records, the dashboard."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.conftest import Answer

ROOT = Path(__file__).parent.parent


def test_layer_contracts_hold_and_fail_on_a_wrong_import(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "search", tmp_path / "search", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    package = tmp_path / "search" / "imgcls_search"
    # The copy must be looked at, not the installed package.
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache'])"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "search")}

    def lint() -> int:
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False).returncode

    assert lint() == 0
    # A module without a floor is as wrong as one that reaches up.
    (package / "stray.py").write_text("")
    assert lint() != 0
    (package / "stray.py").unlink()
    assert lint() == 0
    with (package / "space" / "space.py").open("a") as file:
        file.write("\nfrom imgcls_search.study import best\n")
    assert lint() != 0


def test_page_of_the_house_names_every_wing_and_nothing_else() -> None:
    page = (ROOT / "search" / "README.md").read_text()
    rows = re.findall(r"^\| (`.+?`) \|", page[page.index("| wing |") : page.index("## How one")], re.MULTILINE)
    named = {name.strip("`/ ") for row in rows for name in row.split(",")}
    there = {
        path.stem
        for path in (ROOT / "search" / "imgcls_search").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert named == there - {"__init__", "__main__"}


def test_page_of_the_house_names_modules_that_there_are() -> None:
    """What stands in its walks and tables as `wing/module` is a file, with or without a name in it."""
    page = (ROOT / "search" / "README.md").read_text()
    paths = re.findall(r"`([a-z]+/[a-z_/]+?)(?:\.py)?(?:\.[a-z_]+)?(?:\([^`]*)?`", page)
    package = ROOT / "search" / "imgcls_search"
    assert len(paths) > 30
    assert [
        path
        for path in paths
        if not any((folder / f"{path}{end}").exists() for folder in (package, ROOT) for end in (".py", "/"))
    ] == []


def test_decisions_have_their_parts_and_are_listed_in_order_of_date() -> None:
    folder = ROOT / "docs" / "decisions"
    pages = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    assert len(pages) > 70
    for page in pages:
        assert re.fullmatch(r"20\d\d-\d\d-\d\d-[a-z0-9-]+\.md", page.name), page.name
        text = page.read_text()
        assert text.startswith("# "), page.name
        parts = re.findall(r"^(?:#+ |\*\*)?(Context|Choice|Cost|Status)\b", text, re.MULTILINE)
        assert parts == ["Context", "Choice", "Cost", "Status"], page.name
    done = subprocess.run(
        [sys.executable, "scripts/decisions.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    listed = re.findall(r"\]\((.+?)\)", (folder / "README.md").read_text())
    assert listed == [page.name for page in pages]


def test_dashboard_serves_the_study(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    assert imgcls("run", tiny, "--set", "study.trials=1", "--workers", "1").code == 0
    command = [sys.executable, "-m", "imgcls_search", "dashboard", "tiny-digits", "--port", "0"]
    server = subprocess.Popen(command, cwd=tiny.parent, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:\d+/", server.stdout.readline())
        assert address is not None
        # A loopback server is asked directly, whatever proxy is set.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{address[0]}api/studies") as answer:
            (study,) = json.load(answer)["study_summaries"]
        assert study["study_name"] == "tiny-digits"
        port = address[0].split(":")[-1].strip("/")
        taken = imgcls("dashboard", "tiny-digits", "--port", port)
        assert taken.code == 2
        assert f"--port {port}: cannot be used" in taken.err
    finally:
        server.kill()
        server.communicate()
