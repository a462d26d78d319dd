"""Shared by several test files: a tiny space, and fixtures that run the command line like a user."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from imgcls_search.cli import app as cli

from tests.order import longest_first
from tests.warm import Command, Warm, build_commands_once, keep_operators

# Several tests run at a time; with two threads each, they would wait for each other, at worst a hundred times as long.
os.environ["OMP_NUM_THREADS"] = "1"

WARM = os.environ.pop("IMGCLS_TEST_WARM", None)
"""Socket names of the server that commands are forked from; set for the workers of pytest-xdist."""

PATIENCE = 600.0
"""Timeout of everything that tests wait for, seconds; long, because the machine may be busy."""

TINY = """
study: {trials: 4, pruner: {halving: {min_epochs: 2, eta: 2}}, pictures: false}
data: {digits: {max_train: 200}}
model:
  lenet5: {width: {choice: [0.5, 1]}, activation: {choice: [relu, tanh]}}
optimizer: {adamw: {lr: {float: [1e-4, 1e-2], log: true}}}
training: {epochs: 5, batch_size: 50}
"""
"""A search of a few seconds on real images."""


linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and looks for processes in /proc")


@dataclass(frozen=True)
class Answer:
    """The exit code and output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def can_be_warm() -> bool:
    """Return whether commands may be forked instead of started in new interpreters."""
    return sys.platform.startswith("linux") and "IMGCLS_TEST_COLD" not in os.environ


def pytest_configure(config: pytest.Config) -> None:
    """Start the server that commands are forked from, once for all workers of pytest-xdist."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput") and can_be_warm():
        shared = Warm()
        os.environ["IMGCLS_TEST_WARM"] = shared.names
        config.add_cleanup(shared.close)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first on every worker of pytest-xdist."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        items[:] = longest_first(items, workers, lambda item: item.nodeid.partition("::")[0])


def pytest_collection_finish() -> None:
    """Exclude imported modules from garbage collection: torch and similar packages have millions of objects."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Each worker exports dozens of networks.
        keep_operators()
    gc.collect()
    gc.freeze()


def has_begun_before(verb: str, factory: pytest.TempPathFactory) -> bool:
    """Return whether a test of this session, on any worker, has used a command before, and mark it as used."""
    shared = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
    try:
        (shared / f"begun-{verb}").touch(exist_ok=False)
    except FileExistsError:
        return True
    return False


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm | None]:
    """Yield a server from which commands start at once; None if commands cannot be forked."""
    if not can_be_warm():
        yield None
        return
    process = Warm(WARM)
    yield process
    process.close()


def begin_command(
    arguments: Sequence[str], folder: Path, env: Mapping[str, str], warm: Warm | None, *, fresh: bool = False
) -> subprocess.Popen[str] | Command:
    """Start the command line in a fork of `warm`, or in a new interpreter if that is None."""
    if warm is not None:
        return warm.start(arguments, folder, env, fresh=fresh)
    command = [sys.executable, "-m", "imgcls_search", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=dict(env), stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def start(
    warm: Warm | None, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., subprocess.Popen[str] | Command]]:
    """Start the command line in a separate process, in an empty folder; kill it at the end if it still runs.

    `cold=True` starts a new interpreter as a user does. All other commands are forked from a process that has imported
    the libraries, which saves the seconds of importing torch. The first use of each command in a session, and every
    command with `fresh=True`, imports the package itself again and starts other processes only when it needs them.
    """
    started: list[subprocess.Popen[str] | Command] = []

    def begin(
        *arguments: str | Path, env: Mapping[str, str] | None = None, cold: bool = False, fresh: bool = False
    ) -> subprocess.Popen[str] | Command:
        texts = list(map(str, arguments))
        whole = {**os.environ, "PYTHONWARNINGS": "error::FutureWarning", **(env or {})}
        fresh = not has_begun_before(texts[0], tmp_path_factory) or fresh
        started.append(begin_command(texts, tmp_path, whole, None if cold else warm, fresh=fresh))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def imgcls(start: Callable[..., subprocess.Popen[str] | Command]) -> Callable[..., Answer]:
    """Run the command line in a separate process, in an empty folder, and return its answer."""

    def run(*arguments: str | Path, timeout: float = PATIENCE, **settings: Any) -> Answer:
        process = start(*arguments, **settings)
        out, err = process.communicate(timeout=timeout)
        return Answer(process.returncode, out, err)

    return run


@pytest.fixture
def run_script(warm: Warm | None) -> Callable[..., Answer]:
    """Run a script of this repository and return its answer; its commands are forked from it if possible."""

    def run(
        script: Path,
        *arguments: str | Path,
        cwd: Path,
        timeout: float = 3600,
        cold: bool = False,
        fresh: bool = False,
    ) -> Answer:
        texts = list(map(str, arguments))
        if warm is not None and not cold:
            process = warm.start(texts, cwd, os.environ, script, fresh=fresh)
            out, err = process.communicate(timeout=timeout)
            return Answer(process.wait(), out, err)
        command = [sys.executable, str(script), *texts]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout)
        return Answer(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run the command line in this process, which is faster for commands that train nothing."""
    monkeypatch.chdir(tmp_path)
    build_commands_once()

    def run(*arguments: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["imgcls-search", *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            cli.main()
        printed = capsys.readouterr()
        return Answer(int(ending.value.code or 0), printed.out, printed.err)

    return run


def is_one_line(answer: Answer) -> bool:
    """Return whether a command reported a user's mistake correctly: one line, exit code 2, no traceback."""
    return answer.code == 2 and len(answer.err.splitlines()) == 1 and answer.err.startswith("error: ")
