"""A folder full of modules of other programs: no process of a command may import one."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, linux_only

LIBRARIES = (
    *(
        "search",
        "imgcls_search",
        "torch",
        "torchvision",
        "numpy",
        "scipy",
        "sklearn",
        "optuna",
        "optuna_dashboard",
        "sqlalchemy",
        "ray",
    ),
    *("alembic", "typer", "rich", "yaml", "PIL", "filelock", "matplotlib", "jinja2", "onnx", "onnxscript", "psutil"),
    *("onnxruntime", "timm", "msgpack", "google", "bottle", "sitecustomize", "usercustomize", "tests", "setup"),
    *("data", "train"),
)

SOURCE = str(Path(__file__).parents[2] / "search")
"""Where the package is."""

SPACE = """
study: {trials: 2, pictures: true}
data: {digits: {max_train: 60}}
model: {lenet5: {width: {choice: [0.5, 1]}}}
optimizer: {sgd: {lr: 0.1}}
training: {epochs: 1, batch_size: 30}
"""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Return a folder with a module of every name, each of which leaves a file when it is imported."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in {*LIBRARIES, *sys.stdlib_module_names} - {"__main__"}:
        note = f"import builtins\nbuiltins.open({str(tmp_path / 'IMPORTED')!r}, 'a').write({name!r})\n"
        (folder / f"{name}.py").write_text(f"{note}raise ImportError({name!r})\n")
    (folder / "space.yaml").write_text(SPACE)
    return folder


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Return the installed command, as an installer writes it."""
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    found = re.search(r'^imgcls-search = "([\w.]+):(\w+)"$', project, re.M)
    assert found is not None
    module, function = found.groups()
    path = tmp_path / "bin" / "imgcls-search"
    path.parent.mkdir()
    path.write_text(f"import sys\nfrom {module} import {function}\nif __name__ == '__main__':\n    {function}()\n")
    return path


@pytest.fixture
def command(hostile: Path, script: Path) -> Callable[..., str]:
    """Run the installed command in the folder, and look what was imported from there."""

    def run(*arguments: str, start: tuple[str, ...] = (str(script),), stdin: str = "", **environment: str) -> str:
        package = SOURCE
        paths = os.pathsep.join([package, *([p] if (p := os.environ.get("PYTHONPATH")) else [])])
        env = {**os.environ, "PYTHONPATH": paths, **environment}
        env.pop("PYTHONSAFEPATH", None)
        done = subprocess.run(
            [sys.executable, *start, *arguments],
            cwd=hostile, env=env, input=stdin, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        imported = hostile.parent / "IMPORTED"
        assert not imported.exists(), (arguments, imported.read_text(), done.stderr)
        assert done.returncode == 0, (arguments, done.stderr)
        return done.stdout

    return run


COMMANDS = (
    "run space.yaml --workers 2",
    "check space.yaml --samples 2",
    "export space-digits -o best.yaml",
    "train best.yaml",
    "evaluate trained/best/seed-1.pt",
    "export space-digits --bundle model",
    "augment-preview space.yaml -o sheet.png",
    "predict model sheet.png",
    "report space-digits -o report.html",
    "plan space.yaml --epochs 1",
    "best space-digits",
)

IN_A_ROW = """
import runpy
import sys

if __name__ == "__main__":
    for line in sys.stdin.read().splitlines():
        sys.argv[1:] = line.split()
        try:
            runpy.run_path({script!r}, run_name="__main__")
        except SystemExit as ending:
            if ending.code:
                sys.exit(line)
"""
"""Commands in one interpreter, which imports for each what it has not imported yet, from where it finds it."""


@pytest.mark.slow
def test_commands_import_nothing_from_the_working_folder(
    command: Callable[..., str], script: Path, hostile: Path
) -> None:
    in_a_row = script.with_name("in_a_row.py")
    in_a_row.write_text(IN_A_ROW.format(script=str(script)))
    assert "2 complete" in command(start=(str(in_a_row),), stdin="\n".join(COMMANDS))
    assert (hostile / "report.html").exists()


@pytest.mark.slow
def test_ray_imports_nothing_from_the_working_folder(command: Callable[..., str]) -> None:
    pytest.importorskip("ray")
    assert "2 complete" in command("run", "space.yaml", "--cluster", "local")


@pytest.mark.slow
def test_module_started_by_its_name_imports_no_library_from_the_working_folder(
    command: Callable[..., str], hostile: Path
) -> None:
    # What Python itself imports to start a module is beyond the module.
    for path in hostile.glob("*.py"):
        if path.stem == "imgcls_search" or path.stem not in (
            *LIBRARIES,
            "json",
            "logging",
            "socket",
            "multiprocessing",
        ):
            path.unlink()
    assert "2 complete" in command("run", "space.yaml", start=("-m", "imgcls_search"))


def test_path_that_the_user_names_stays(command: Callable[..., str], hostile: Path) -> None:
    (hostile / "extra").mkdir()
    (hostile / "extra" / "sitecustomize.py").write_text("import os; os.environ['SEEN'] = '1'; open('seen', 'a')")
    paths = os.pathsep.join([SOURCE, str(hostile / "extra")])
    command("check", "space.yaml", "--samples", "0", PYTHONPATH=paths)
    assert (hostile / "seen").exists()


@linux_only
def test_processes_are_kept_from_the_folder_without_python_having_a_setting_for_it(hostile: Path) -> None:
    # As Python 3.10 has none; what is started first is the tracker of resources, then the fork server.
    script = hostile.parent / "start.py"
    script.write_text(
        f"import sys\nsys.path[0] = {SOURCE!r}\n"
        "from pathlib import Path\nfrom imgcls_search.executors.helper import Helper\n"
        "if __name__ == '__main__':\n    print(Helper(Path('studies')).versions())\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run([sys.executable, str(script)], cwd=hostile, env=env, capture_output=True, text=True)
    assert not (hostile.parent / "IMPORTED").exists(), (hostile.parent / "IMPORTED").read_text()
    assert "torch" in done.stdout, done.stderr
