"""What several test files share: a tiny space, and the command line as a user meets it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

# Two tests run at a time; two threads in each of them would wait for each other, a hundred times as long at worst.
os.environ["OMP_NUM_THREADS"] = "1"

TINY = """
study: {trials: 4, pruner: {halving: {min_epochs: 2, eta: 2}}}
data: {digits: {max_train: 200}}
model:
  lenet5: {width: {choice: [0.5, 1]}, activation: {choice: [relu, tanh]}}
optimizer: {adamw: {lr: {float: [1e-4, 1e-2], log: true}}}
training: {epochs: 5, batch_size: 50}
"""
"""A search of a few seconds on real images."""


@dataclass(frozen=True)
class Answer:
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def imgcls(tmp_path: Path) -> Callable[..., Answer]:
    """Run the command line in a process of its own, in an empty folder, and return what it did."""

    def run(*arguments: str | Path, timeout: float = 120, env: Mapping[str, str] | None = None) -> Answer:
        done = subprocess.run(
            [sys.executable, "-m", "search", *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "PYTHONWARNINGS": "error::FutureWarning", **(env or {})},
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return run
