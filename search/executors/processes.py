"""How the run starts processes that need torch."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any


def start(target: Callable[..., None], name: str, *arguments: Any) -> tuple[BaseProcess, Connection]:
    """Start `target(connection, *arguments)` in a process of its own; return it and our end of the connection."""
    context = _context()
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), name=name, daemon=True)  # type: ignore[attr-defined]
    with _deaf_to_interrupts():
        process.start()
    # Only the process may hold its end: that is how each side sees the other's death.
    theirs.close()
    return process, ours


def warm_up() -> None:
    """Begin what the first `start` would wait for, and return at once."""
    if _context().get_start_method() == "forkserver":
        from multiprocessing import forkserver

        with _deaf_to_interrupts():
            forkserver.ensure_running()


@cache
def _context() -> BaseContext:
    # Importing torch and what a training needs takes seconds. On Linux one process does it once and forks the others,
    # a replacement for a dead worker too. It never touches a GPU, whose state would not outlive a fork.
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["search.executors.warm"])
    return context


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Let a process be born that ignores Ctrl-C, which reaches the whole terminal group; the run decides."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
