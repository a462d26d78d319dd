"""The installed package: what `python -m build` makes has all that the commands read, and a user's files of any name do
not matter to it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from imgcls_search import __version__

from tests.cli.test_working_folder import IN_A_ROW
from tests.conftest import PATIENCE

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]

SPACE = """
study: {trials: 2, pictures: false}
data: {digits: {max_train: 60}}
model: {lenet5: {width: {choice: [0.5, 1]}}}
optimizer: {sgd: {lr: 0.1}}
training: {epochs: 1, batch_size: 30}
"""

THEIRS = ("search.py", "search/__init__.py", "imgcls_search.py", "imgcls_search/__init__.py", "data.py", "train.py")
"""Files that a user may well have, and that share a name with what the package is made of."""


PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the sdist, and the wheel that was made from it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # A build writes beside what it builds.
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("search", "spaces"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(source), cwd=folder)
    return folder / "dist"


@pytest.fixture(scope="module")
def installed(built: Path) -> Path:
    """Return the bin folder of an environment into which the wheel was installed, not the source."""
    (wheel,) = built.glob("*.whl")
    return _install(wheel, built.parent / "venv")


def _install(archive: Path, environment: Path) -> Path:
    _run(sys.executable, "-m", "venv", "--without-pip", str(environment), cwd=environment.parent)
    (packages,) = (environment / "lib").glob("python*/site-packages")
    # The libraries are those of this environment, behind the package's own.
    (packages / "libraries.pth").write_text("\n".join(_libraries()))
    python = str(environment / "bin/python")
    alone = ("--no-deps", "--no-index", "--no-build-isolation")
    _run(*PIP, "--python", python, "install", *alone, str(archive), cwd=environment.parent)
    return environment / "bin"


def _libraries() -> list[str]:
    """Return the folders that packages are imported from here, those of an environment below this one too."""
    source = str(REPOSITORY / "search")
    return [path for path in sys.path if path.endswith("-packages") and path != source]


def _run(*command: str, cwd: Path, stdin: str = "") -> str:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    done = subprocess.run(command, cwd=cwd, env=env, input=stdin, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """Return a folder with files that end whatever imports them."""
    for name in THEIRS:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"raise SystemExit('{name} was imported')\n")
    (tmp_path / "space.yaml").write_text(SPACE)
    return tmp_path


def test_wheel_has_every_file_of_the_package_and_the_shipped_spaces(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = REPOSITORY / "search" / "imgcls_search"
    files = [path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    expected = {str(path.relative_to(package.parent)) for path in files}
    shipped = {f"imgcls_search/spaces/{path.name}" for path in (REPOSITORY / "spaces").glob("*.yaml")}
    assert len(shipped) >= 15
    assert packed == expected | shipped


def test_sdist_installs_and_runs(built: Path, tmp_path: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    programs = _install(sdist, tmp_path / "venv")
    (tmp_path / "search.py").write_text("raise SystemExit('search.py was imported')\n")
    assert _run(str(programs / "imgcls-search"), "--version", cwd=tmp_path) == f"imgcls-search {__version__}\n"
    assert "study lenet5-digits" in _run(
        str(programs / "imgcls-search"), "check", "lenet5", "--samples", "0", cwd=tmp_path
    )


def test_wheel_is_what_runs(installed: Path, tmp_path: Path) -> None:
    code = "from importlib.metadata import version; print(version('imgcls-search'))"
    assert _run(str(installed / "python"), "-c", code, cwd=tmp_path).strip() == __version__
    where = _run(str(installed / "python"), "-c", "import imgcls_search; print(imgcls_search.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)


COMMANDS = (
    "check vit --samples 0",
    "spaces copy vit",
    "families",
    "schema",
    "export space-digits --bundle model",
    "report space-digits -o report.html",
)


def test_wheel_works_beside_files_of_its_modules_names(installed: Path, beside: Path) -> None:
    program = str(installed / "imgcls-search")
    assert "2 complete" in _run(program, "run", "space.yaml", "--workers", "2", cwd=beside)
    assert _run(program, "--version", cwd=beside) == f"imgcls-search {__version__}\n"
    # The others in one interpreter, which imports for each what it has not imported yet.
    in_a_row = installed / "in_a_row.py"
    in_a_row.write_text(IN_A_ROW.format(script=program))
    out = _run(str(installed / "python"), str(in_a_row), cwd=beside, stdin="\n".join(COMMANDS))
    assert "study vit-digits" in out
    assert (beside / "vit.yaml").read_bytes() == (REPOSITORY / "spaces" / "vit.yaml").read_bytes()
    assert "lenet5" in out
    assert '"$schema"' in out
    assert (beside / "model").is_dir()
    assert (beside / "report.html").read_text().startswith("<!doctype html>")
