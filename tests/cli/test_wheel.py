"""The installed package: a wheel has all that the commands read, and a user's files of any name do not matter to it."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import PATIENCE

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]

SPACE = """
study: {trials: 2}
data: {digits: {max_train: 60}}
model: {lenet5: {width: {choice: [0.5, 1]}}}
optimizer: {sgd: {lr: 0.1}}
training: {epochs: 1, batch_size: 30}
"""

THEIRS = ("search.py", "search/__init__.py", "imgcls_search.py", "imgcls_search/__init__.py", "data.py", "train.py")
"""Files that a user may well have, and that share a name with what the package is made of."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bin folder of an environment into which the wheel was installed, not the source."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # A build writes beside what it builds.
    shutil.copytree(
        REPOSITORY / "search", source / "search", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    wheel = (*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(source))
    _run(*wheel, cwd=folder)
    _run(sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"), cwd=folder)
    (packages,) = (folder / "venv/lib").glob("python*/site-packages")
    # The libraries are those of this environment, behind the wheel's own.
    (packages / "libraries.pth").write_text("\n".join(site.getsitepackages()))
    (built,) = folder.glob("*.whl")
    python = folder / "venv/bin/python"
    _run(*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(built), cwd=folder)
    return folder / "venv/bin"


def _run(*command: str, cwd: Path) -> str:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture
def command(installed: Path, tmp_path: Path) -> Callable[..., str]:
    """Run the installed command in a folder with files that end whatever imports them."""
    for name in THEIRS:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"raise SystemExit('{name} was imported')\n")
    (tmp_path / "space.yaml").write_text(SPACE)
    return lambda *arguments: _run(str(installed / "imgcls-search"), *arguments, cwd=tmp_path)


def test_wheel_is_what_runs(installed: Path, tmp_path: Path) -> None:
    where = _run(str(installed / "python"), "-c", "import imgcls_search; print(imgcls_search.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)


def test_wheel_works_beside_files_of_its_modules_names(command: Callable[..., str], tmp_path: Path) -> None:
    assert "2 complete" in command("run", "space.yaml", "--workers", "2")
    assert "lenet5" in command("families")
    assert '"$schema"' in command("schema")
    command("export", "space-digits", "-o", "best.yaml")
    command("train", "best.yaml")
    command("export", "trained/best/seed-1.pt", "--bundle", "model")
    command("augment-preview", "space.yaml", "-o", "sheet.png")
    command("predict", "model", "sheet.png")
    command("report", "space-digits", "-o", "report.html")
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
