"""Forked commands answer, fail and die as those of a new interpreter do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PATIENCE, Answer, linux_only
from tests.warm import Command, Warm

pytestmark = linux_only


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("families", "vit"), ("check", "missing.yaml"), ("nonsense",), ("best", "none")])
def test_warm_and_cold_answer_alike(arguments: tuple[str, ...], imgcls: Callable[..., Answer]) -> None:
    imgcls(*arguments)
    assert imgcls(*arguments) == imgcls(*arguments, cold=True)


def test_a_killed_command_has_its_signal_for_an_exit_code(
    tiny: Path, warm: Warm | None, start: Callable[..., Any]
) -> None:
    if warm is None:
        pytest.skip("all commands are cold")
    start("run", tiny)
    # A study of its own: the first holds the other one.
    process = start("run", tiny, "--set", "training.epochs=3000", "--name", "killed")
    assert isinstance(process, Command)
    assert process.poll() is None
    process.kill()
    assert process.wait(PATIENCE) == -signal.SIGKILL
    process.communicate(PATIENCE)


def test_environment_and_folder_are_the_commands_own(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    imgcls("families")
    about = tmp_path / "site" / "towers-1.0.dist-info"
    about.mkdir(parents=True)
    (tmp_path / "site" / "towers.py").write_text("raise RuntimeError('found in the folder of the test')\n")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: towers\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[imgcls_search.models]\ntower = towers:tower\n")
    answer = imgcls("families", env={"PYTHONPATH": str(tmp_path / "site")})
    assert answer.code == 2
    assert "found in the folder of the test" in answer.err
    assert imgcls("families").code == 0


SCRIPT = """
import os, subprocess, sys, tempfile
from pathlib import Path
with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    print("begins")
    command = [sys.executable, "-m", "imgcls_search"]
    kept = subprocess.run([*command, "families", "lenet5"], cwd=folder, capture_output=True, text=True, check=True)
    wrong = subprocess.run([*command, "nonsense"], cwd=folder, env={**os.environ, "COLUMNS": "200"})
    (folder / "still.txt").write_text("there")
    (folder / "other.py").write_text("import sys; print(sys.argv[1:]); sys.exit('ends')")
    for words in (["-c", "import sys; print(sys.argv, __name__); sys.exit(5)"], [str(folder / "other.py"), "x"]):
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
        print(done.returncode, done.stdout, done.stderr)
    print(kept.stdout, wrong.returncode, sys.argv[1:], Path(sys.argv[0]).name, os.getcwd())
sys.exit(3)
"""


def test_a_script_and_its_commands_answer_as_in_new_interpreters(tmp_path: Path, warm: Warm | None) -> None:
    if warm is None:
        pytest.skip("all commands are cold")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = warm.start(["a", "b"], tmp_path, os.environ, script)
    out, err = process.communicate(PATIENCE)
    done = subprocess.run(
        [sys.executable, str(script), "a", "b"], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE
    )
    assert (process.wait(PATIENCE), out, err) == (done.returncode, done.stdout, done.stderr)
    assert done.returncode == 3
    assert "No such command" in err
