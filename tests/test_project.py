"""The project as a whole: layers, the house's page, decisions, version, hooks, templates, the dashboard."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import yaml
from imgcls_search import __version__

from tests.conftest import Answer

ROOT = Path(__file__).parent.parent
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


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
    """What stands in its walks and tables as `wing/module` is a file, and a name after it is defined there."""
    page = (ROOT / "search" / "README.md").read_text()
    paths = re.findall(r"`([a-z]+/[a-z_/]+?)(?:\.py)?(?:\.[a-z_]+)?(?:\([^`]*)?`", page)
    package = ROOT / "search" / "imgcls_search"
    assert len(paths) > 30
    assert [
        path
        for path in paths
        if not any((folder / f"{path}{end}").exists() for folder in (package, ROOT) for end in (".py", "/"))
    ] == []

    names = re.findall(r"`([a-z]+/[a-z_]+)\.(?!py`)([a-z_]+)(?:\([^`]*)?`", page)
    assert len(names) >= 5
    for path, name in names:
        assert re.search(rf"^ *(?:def|class) {name}\b", (package / f"{path}.py").read_text(), re.MULTILINE), (
            f"{path}: no {name}"
        )


def test_page_of_the_house_lists_every_module_in_its_wing() -> None:
    page = (ROOT / "search" / "README.md").read_text()
    lists = page[page.index("## The modules") : page.index("## How one")]
    package = ROOT / "search" / "imgcls_search"
    listed = {
        wing: {*re.findall(r"`(\w+)/?`", names)}
        for wing, names in re.findall(r"^ *- (?:\*\*)?`([a-z_/]+)/`(.*?)(?=^ *- |\Z)", lists, re.MULTILINE | re.DOTALL)
    }
    there = {
        str(folder.relative_to(package)): {path.stem for path in folder.glob("*.py")} - {"__init__"}
        for folder in (file.parent for file in package.rglob("*/__init__.py"))
    }
    assert listed.keys() == there.keys()
    for wing, modules in there.items():
        inner = {path.parent.name for path in (package / wing).glob("*/__init__.py")}
        assert listed[wing] - inner == modules, f"list it under {wing}/ in search/README.md"


def test_no_module_is_longer_than_400_lines() -> None:
    """A longer one has two stories: give each a room that a newcomer would guess."""
    lines = {path: len(path.read_text().splitlines()) for path in (ROOT / "search" / "imgcls_search").rglob("*.py")}
    assert len(lines) > 300
    assert {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > 400} == {}


def test_each_loop_stands_on_one_screen() -> None:
    """That of a search, of the epochs of a training, and of the steps of an epoch."""
    for path, name in (("orchestrator/search", "run"), ("training/loop", "fit"), ("training/loop", "train_epoch")):
        tree = ast.parse((ROOT / "search" / "imgcls_search" / f"{path}.py").read_text())
        loop = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)
        assert loop.end_lineno is not None
        assert loop.end_lineno - loop.lineno < 50, f"{path}.{name}"


def test_walks_through_the_house_have_few_rooms() -> None:
    page = (ROOT / "search" / "README.md").read_text()
    walks = page[page.index("## Three walks") : page.index("## Where a new thing goes")]
    base = {path.stem for path in (ROOT / "search" / "imgcls_search").glob("*.py")}
    rooms = [
        {room for room in re.findall(r"`([a-z]+/[a-z_]+|[a-z_]+)(?:[.(][^`]*)?`", walk) if "/" in room or room in base}
        for walk in re.split(r"^\*\*", walks, flags=re.MULTILINE)[1:]
    ]
    assert [most >= len(names) > 6 for names, most in zip(rooms, (12, 8, 10), strict=True)] == [True] * 3, rooms


def test_decisions_have_their_parts_and_are_listed_in_order_of_date() -> None:
    folder = ROOT / "docs" / "decisions"
    pages = sorted(path for path in folder.glob("*.md") if path.name != "index.md")
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
    listed = re.findall(r"\]\((.+?)\)", (folder / "index.md").read_text())
    assert listed == [page.name for page in pages]


def test_version_is_stated_in_one_place(imgcls: Callable[..., Answer]) -> None:
    assert imgcls("--version").out == f"imgcls-search {__version__}\n"
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    assert re.search(rf"^## \[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d$", CHANGELOG, re.MULTILINE)
    stated = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in stated
    assert not re.search(r'^version = "', stated, re.MULTILINE)


def test_changelog_has_the_form_of_keep_a_changelog() -> None:
    heads = re.findall(r"^## (.*)$", CHANGELOG, re.MULTILINE)
    assert heads[0] == "[Unreleased]"
    dates = [re.fullmatch(r"\[\d+\.\d+\.\d+\] - (\d{4}-\d\d-\d\d)", head)[1] for head in heads[1:]]  # type: ignore[index]
    assert dates == sorted(dates, reverse=True)
    kinds = set(re.findall(r"^### (.*)$", CHANGELOG, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_hooks_are_local_and_run_what_scripts_test_runs() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    ran = re.findall(r"^(scripts/check \w+)", (ROOT / "scripts" / "test").read_text(), re.MULTILINE)
    assert {hook["entry"] for hook in hooks} == {*ran, "scripts/test"}
    assert len(ran) == 4


def test_check_finds_what_is_wrong_and_names_what_there_is(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import os\nx = [1,2]\n")
    # In the environment of the tests, wherever they run.
    env = {**os.environ, "VIRTUAL_ENV": sys.prefix}

    def check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [ROOT / "scripts" / "check", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=env, check=False)

    assert check("format", wrong).returncode != 0
    assert "F401" in check("lint", wrong).stdout
    wrong.write_text("x = [1, 2]\n")
    assert check("format", wrong).returncode == 0
    branches = "".join(f"    if x == {number}:\n        print({number})\n" for number in range(18))
    wrong.write_text(f'"""A module."""\n\n\ndef long(x: int) -> None:\n    """Say it."""\n{branches}')
    found = check("lint", wrong).stdout
    assert "C901 `long` is too complex" in found
    assert "PLR0912 Too many branches" in found
    unknown = check("everything")
    assert unknown.returncode == 2
    assert unknown.stderr == "error: everything: no such check; allowed: format, lint, imports, types\n"


def test_templates_of_issues_are_forms() -> None:
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    forms = [path for path in sorted(folder.glob("*.yml")) if path.name != "config.yml"]
    assert len(forms) == 3
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert form.keys() == {"name", "description", "labels", "body"}, path.name
        named = [part["id"] for part in form["body"] if part["type"] != "markdown"]
        assert len(set(named)) == len(named) > 0
        assert any(part.get("validations", {}).get("required") for part in form["body"])


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
