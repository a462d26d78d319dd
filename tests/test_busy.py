"""`scripts/test-busy` on a small project: what it runs, notes, and resumes."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import PATIENCE
from tests.orchestrator.test_run import children, is_alive, linux_only, wait_for

SCRIPT = Path(__file__).parent.parent / "scripts" / "test-busy"

TESTS = """
import pytest
def test_good(): pass
def test_bad(): assert False
def test_other(): pytest.skip("here")
"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("test_busy_script", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    found = importlib.util.module_from_spec(spec)
    loader.exec_module(found)
    return found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a repository with the script and three tests."""
    folder = tmp_path / "project"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPT, folder / "scripts")
    (folder / ".gitignore").write_text("/benchmarks/\n/.venv/\n")
    commit(folder, TESTS)
    return folder


def commit(folder: Path, tests: str) -> None:
    (folder / "test_all.py").write_text(tests)
    git = ("git", "-C", folder, "-c", "user.name=me", "-c", "user.email=me@host", "-c", "commit.gpgsign=false")
    subprocess.run([*git[:3], "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "tests"], check=True)


def command(folder: Path, *arguments: str) -> dict[str, Any]:
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "TMPDIR": str(folder.parent)}
    script = [sys.executable, str(folder / "scripts/test-busy"), "--processes", "0", "--parallel", "1", *arguments]
    return {"args": script, "env": environment, "text": True}


def rounds(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "benchmarks/busy.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_finished_rounds_are_noted_and_not_repeated(project: Path) -> None:
    done = subprocess.run(**command(project, "--full", "1", "--load", "0"), capture_output=True, timeout=PATIENCE)
    assert done.returncode == 1, done.stderr
    assert "1 passed in" in done.stdout
    assert "FAILED: test_all::test_bad" in done.stdout
    (noted,) = rounds(project)
    assert noted.keys() == {"commit", "kind", "round", "seconds", "load", "passed", "skipped", "failed"}
    assert (noted["kind"], noted["passed"], noted["skipped"]) == ("full", 1, 1)
    assert noted["failed"] == ["test_all::test_bad"]
    assert "assert False" in (project / f"benchmarks/busy/{noted['commit'][:7]}-full-0.log").read_text()
    # What is not committed is not tested, and a round that was finished is not run again.
    (project / "test_all.py").write_text("")
    done = subprocess.run(**command(project, "--full", "2", "--load", "0"), capture_output=True, timeout=PATIENCE)
    assert [one["round"] for one in rounds(project)] == [0, 1]
    assert rounds(project)[1]["failed"] == ["test_all::test_bad"]
    # Another commit begins with its first round.
    commit(project, "def test_good(): pass\n")
    done = subprocess.run(**command(project, "--full", "1", "--load", "0"), capture_output=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert "1 rounds of" in done.stdout
    assert [one["round"] for one in rounds(project)] == [0, 1, 0]


@pytest.mark.slow
def test_rounds_run_side_by_side_and_only_missing_ones_again(project: Path, tmp_path: Path) -> None:
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    commit(
        project,
        "import os, pathlib, time\ndef test_meets():\n"
        f"    meeting = pathlib.Path({str(meeting)!r})\n    (meeting / str(os.getpid())).touch()\n"
        "    while len(list(meeting.iterdir())) < 2: time.sleep(0.05)\n",
    )
    two = ("--full", "2", "--load", "0", "--together", "2")
    done = subprocess.run(**command(project, *two), capture_output=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr + done.stdout
    assert sorted(one["round"] for one in rounds(project)) == [0, 1]
    assert not list(tmp_path.glob("busy-*"))
    # A first round that did not end, beside a second one that did: only the first is run.
    lines = [json.dumps(one) + "\n" for one in rounds(project) if one["round"] == 1]
    (project / "benchmarks/busy.jsonl").write_text("".join(lines))
    done = subprocess.run(**command(project, *two), capture_output=True, timeout=PATIENCE)
    assert "full 1: started" in done.stdout
    assert "full 2: started" not in done.stdout
    assert [one["round"] for one in rounds(project)] == [1, 0]


@pytest.mark.slow
@linux_only
def test_interrupted_round_is_not_noted_and_leaves_no_process(project: Path, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    commit(
        project,
        f"import os, pathlib, time\ndef test_long():\n    pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\n"
        "    time.sleep(1000)\n",
    )
    # Any machine is less busy than that.
    load = str(round(os.getloadavg()[0]) + 3)
    with subprocess.Popen(**command(project, "--full", "1", "--load", load), stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: pid.exists() and pid.read_text())
        burners = wait_for(lambda: [one for one in children_of(process.pid) if b"getppid" in one[1]])
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) != 0
    left = [int(pid.read_text()), *(number for number, _ in burners)]
    wait_for(lambda: not any(is_alive(one) for one in left))
    assert not (project / "benchmarks/busy.jsonl").exists()
    assert not list(tmp_path.glob("busy-*"))


def children_of(pid: int) -> list[tuple[int, bytes]]:
    """Return the processes that a process started, with their command lines."""
    return [(one, Path(f"/proc/{one}/cmdline").read_bytes()) for one in children(pid)]


def test_tests_of_processes_are_there(script: ModuleType) -> None:
    for name in script.KINDS["processes"]:
        assert (SCRIPT.parent.parent / name).is_file(), name
