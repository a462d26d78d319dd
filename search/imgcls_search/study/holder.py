"""Find out who works on a study without taking its lock, which could make a starting run fail."""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

if sys.platform != "win32":
    import fcntl

RUN = "run"
"""The task of a search; other commands that hold a study use their own names."""

if sys.platform == "darwin":
    _FLOCK = "qqihh", (0, 0, 0, fcntl.F_WRLCK, os.SEEK_SET), 3
elif sys.platform != "win32":
    _FLOCK = "hhqqi", (fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0), 0
"""The system's `struct flock`: its format, a query for the whole file, and the index of the lock type."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that works on a study."""

    process: str
    """In words: `process 12`, or `process 12 on host`."""

    task: str = RUN
    """The command that it runs."""


_ours: dict[Path, Holder] = {}
"""Marks that this process holds; the system does not report a process's own locks to it."""


@contextlib.contextmanager
def marking(path: Path, task: str) -> Iterator[None]:
    """Write this process and its task into a file and keep it locked; the caller must hold the study's lock."""
    file = _open_locked(path)
    ours = path.absolute()
    _ours[ours] = Holder(process=f"process {os.getpid()}", task=task)
    # A full disk must not end a search: only other processes read this file.
    with contextlib.suppress(OSError):
        if file is not None:
            file.write(f"{os.getpid()}\n{task}\n")
            file.flush()
    try:
        yield
    finally:
        del _ours[ours]
        with contextlib.suppress(OSError):
            if file is not None:
                file.close()


def _open_locked(path: Path) -> TextIO | None:
    # Keep the file open: closing it ends the POSIX lock.
    with contextlib.suppress(OSError):
        file = path.open("w", encoding="utf-8")
        if sys.platform != "win32":
            # A POSIX lock, unlike flock's, can be queried without being taken.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    return None


def holder_of(path: Path) -> Holder | None:
    """Return who holds a mark, or None if nobody does, even after its process was killed."""
    if (ours := _ours.get(path.absolute())) is not None:
        return ours
    return read_mark(path) if _is_locked(path) else None


def read_mark(path: Path) -> Holder:
    """Return who wrote a mark last."""
    try:
        process, *rest = path.read_text(encoding="utf-8").split()
        return Holder(process=f"process {int(process)}", task=rest[0] if rest else RUN)
    except (OSError, ValueError):
        return Holder(process="process unknown")


def _is_locked(path: Path) -> bool:
    if sys.platform == "win32":
        # Windows has no call that asks about a lock without taking it.
        return False
    # Ask whether the whole file could be locked: the answer is the conflicting lock, or F_UNLCK.
    layout, question, place = _FLOCK
    try:
        with path.open("rb") as file:
            answer = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(layout, *question))
    except OSError:
        return False
    return bool(struct.unpack(layout, answer)[place] != fcntl.F_UNLCK)
