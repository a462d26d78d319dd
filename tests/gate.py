"""Trainings that wait instead of computing, so that a test can kill them midway, however busy the machine is."""

from __future__ import annotations

import json
from pathlib import Path

from imgcls_search import own_code

CODE = """
import os
import time
from pathlib import Path

epochs = 0


def passed(probabilities, labels):
    global epochs
    epochs += 1
    time.sleep({seconds})
    if epochs > {epochs}:
        Path({folder!r}, f"waiting-{{os.getpid()}}").touch()
    while epochs > {epochs} and Path({closed!r}).exists():
        time.sleep(0.02)
    return 0.0
"""

NEVER = 10**9
"""More epochs than any training has."""

LIMITS = json.dumps({"gate:passed": {"at_most": 1}})
"""A limit that every trial satisfies; its only effect is that the function is called after each epoch."""


class Gate:
    """A closed gate: each process that trains with its options and environment reports some epochs, then waits."""

    def __init__(self, folder: Path, *, epochs: int, seconds: float = 0.0) -> None:
        """Let each process pass `epochs` epochs, each of which takes at least `seconds`; then close the gate."""
        folder.mkdir()
        self.folder = folder
        self.closed = folder / "closed"
        self.closed.touch()
        (folder / "gate.py").write_text(
            CODE.format(epochs=epochs, seconds=seconds, folder=str(folder), closed=str(self.closed))
        )
        self.env = {own_code.VARIABLE: str(folder)}
        self.options = ("--set", f"limits={LIMITS}")

    def reached(self) -> int:
        """Return how many processes wait at the gate or have waited."""
        return len(list(self.folder.glob("waiting-*")))

    def open(self) -> None:
        """Let all processes pass, now and later."""
        self.closed.unlink()


def slow_epochs(folder: Path, seconds: float) -> dict[str, str]:
    """Return an environment in which each epoch of a space with `limits: LIMITS` takes at least `seconds`."""
    folder.mkdir()
    (folder / "gate.py").write_text(CODE.format(epochs=NEVER, seconds=seconds, folder="", closed=""))
    return {own_code.VARIABLE: str(folder)}
