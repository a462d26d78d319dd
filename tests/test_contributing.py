"""What CONTRIBUTING.md shows: each worked example is applied to a copy of the package and its space is searched."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Answer

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
CODE = re.findall(r"```python\n# (\S+): (new file|add to the imports|add (?:to|above) \w+)\n(.*?)```", TEXT, re.DOTALL)
SPACES = dict(re.findall(r"```yaml\n# (\w+)\.yaml\n(.*?)```", TEXT, re.DOTALL))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the source with all examples applied."""
    root = tmp_path_factory.mktemp("contributed")
    package = root / "search" / "imgcls_search"
    shutil.copytree(ROOT / "search" / "imgcls_search", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    for name, where, code in CODE:
        apply(root / name, where, code)
    return root


def apply(path: Path, where: str, code: str) -> None:
    """Do with a file what the first line of an example says."""
    if where == "new file":
        assert not path.exists()
        path.write_text(code)
        return
    lines = path.read_text().splitlines(keepends=True)
    name = "from imgcls_search" if where == "add to the imports" else where.rpartition(" ")[2]
    (at, *_) = [number for number, line in enumerate(lines) if re.match(rf"{name}\b", line)]
    if where.startswith("add to ") and where != "add to the imports":
        assert lines[at].endswith("= {\n")
        at += 1
    after = "\n\n" if where.startswith("add above") else ""
    path.write_text("".join([*lines[:at], code, after, *lines[at:]]))


def test_examples_are_there() -> None:
    assert len(CODE) == len(re.findall(r"```python\n", TEXT)) == 11
    assert list(SPACES) == ["tower", "neighbour", "brier", "stripes"]


def test_scripts_and_pages_that_it_names_are_there() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT)
    assert len(links) >= 4
    assert [link for link in links if not (ROOT / link).exists()] == []
    scripts = set(re.findall(r"(?<![\w/])scripts/[\w.-]+\w", TEXT))
    assert {"scripts/test", "scripts/release-check", "scripts/decisions.py"} <= scripts
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


@pytest.mark.slow
def test_examples_are_written_as_the_package_is(source: Path) -> None:
    changed = sorted({str(source / name) for name, _, _ in CODE})
    for command in (("check", "--extend-ignore", "I001"), ("format", "--check")):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *changed], cwd=source, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", SPACES)
def test_example_is_searched(
    name: str, source: Path, tmp_path: Path, imgcls: Callable[..., Answer], run_script: Callable[..., Answer]
) -> None:
    (tmp_path / f"{name}.yaml").write_text(SPACES[name])
    plain = imgcls("check", f"{name}.yaml", "--samples", "0")
    assert plain.code == 2
    assert name in plain.err
    # Before any folder that this environment names: a process without this package, which imports that of the copy.
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(source / 'search')!r})\n"
        "import imgcls_search.__main__ as program\n"
        "if __name__ == '__main__':\n    program.main()\n"
    )
    options = ("--workers", "1", "--set", "study.pictures=false")
    done = run_script(script, "run", f"{name}.yaml", *options, cwd=tmp_path, fresh=True)
    assert done.code == 0, done.err
    trials = SPACES[name].count("trials: 3") + 2
    assert f"{trials} trials ({trials} complete" in done.out


def test_every_extra_is_tried_before_a_release() -> None:
    script = (ROOT / "scripts" / "release-check").read_text()
    section = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]\n")[2]
    extras = set(re.findall(r"^([\w-]+) = \[", section.partition("\n[")[0], re.MULTILINE))
    tried = set(re.findall(r"^        ([\w-]+)\)", script, re.MULTILINE))
    assert {"ray", "serve"} <= extras
    assert tried == (extras - {"dev", "docs"}) | {"none", "sdist", "predict"}
