"""Processes that the run starts."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from imgcls_search.executors import processes


def tell(connection: Connection, name: str) -> None:
    connection.send(os.environ.get(name))


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
