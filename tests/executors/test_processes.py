"""Processes that the run starts."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from imgcls_search.executors import processes


def tell(connection: Connection, name: str) -> None:
    connection.send(os.environ.get(name))


def draw_a_bar(connection: Connection) -> None:
    from tqdm import tqdm

    with tqdm([1], disable=False, file=io.StringIO()) as bar:
        list(bar)
    connection.send(True)
    connection.recv()


KILLED = """
from imgcls_search.executors import processes
from tests.executors.test_processes import draw_a_bar

process, connection = processes.start(draw_a_bar, "bar")
assert connection.recv()
process.kill()
process.join()
"""


def test_killed_process_that_drew_a_bar_leaves_nothing_that_python_warns_of() -> None:
    # Such as the bundle of `auto` beside a search whose time is over: ONNX's exporter has a progress bar.
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", KILLED], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_process_has_the_environment_of_the_moment_it_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    # Our processes look for modules in the working folder only where it is named.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    # The process that others are forked from is there before an option such as --weights-dir takes effect.
    for value in ("one", "two"):
        monkeypatch.setenv("IMGCLS_WEIGHTS", value)
        process, connection = processes.start(tell, "teller", "IMGCLS_WEIGHTS")
        assert connection.recv() == value
        process.join()
        connection.close()
