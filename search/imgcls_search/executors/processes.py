"""How the run starts processes that need torch."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from multiprocessing import spawn, util
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from imgcls_search import terminal
from imgcls_search.errors import UserError
from imgcls_search.own_code import module_path

MOST_FOLDER_BYTES = 60
"""A socket's path has 107 bytes at most, 103 on a Mac, of which multiprocessing takes 33 and Ray's fork server 43."""


def start(target: Callable[..., None], name: str, *arguments: Any) -> tuple[BaseProcess, Connection]:
    """Start `target(connection, *arguments)` in a process of its own; return it and our end of the connection."""
    context = _context()
    ours, theirs = context.Pipe()
    given = (target, dict(os.environ), theirs, *arguments)
    process = context.Process(target=_begin, args=given, name=name, daemon=True)  # type: ignore[attr-defined]
    warm_up()
    # A fork server answers when it has imported torch: a Ctrl-C need not wait for that, and the process that it forks
    # is as deaf as it is.
    with _as_ours(), contextlib.nullcontext() if _has_fork_server() else deaf_to_terminal():
        process.start()
    # Only the process may hold its end: that is how each side sees the other's death.
    theirs.close()
    return process, ours


def _begin(target: Callable[..., None], environment: Mapping[str, str], *arguments: Any) -> None:
    """Run the target in a process that shows warnings as the program does, however it was started."""
    # The process that it was forked from may be older than what an option set, such as folders of weights.
    os.environ.clear()
    os.environ.update(environment)
    terminal.show_plain_warnings()
    terminal.lock_bars_by_thread()
    target(*arguments)


def warm_up() -> None:
    """Begin what the first `start` would wait for, and return at once."""
    if _has_fork_server():
        from multiprocessing import forkserver

        with deaf_to_terminal(), _as_ours():
            forkserver.ensure_running()


def abandon() -> None:
    """End the fork server, if there is one, in the middle of whatever it does."""
    server = sys.modules.get("multiprocessing.forkserver")
    if server is not None and (pid := server._forkserver._forkserver_pid) is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _has_fork_server() -> bool:
    return _context().get_start_method() == "forkserver"


_OURS = threading.local()
"""Whether the thread starts one of our processes just now, and not one of the program that this package is used in."""


@contextlib.contextmanager
def _as_ours() -> Iterator[None]:
    _OURS.is_starting = True
    try:
        yield
    finally:
        _OURS.is_starting = False


def _is_ours() -> bool:
    return getattr(_OURS, "is_starting", False)


@cache
def _context() -> BaseContext:
    _keep_folder_out()
    _keep_script_out()
    # Importing torch and what a training needs takes seconds. On Linux one process does it once and forks the others,
    # a replacement for a dead worker too. It never touches a GPU, whose state would not outlive a fork.
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    _find_short_folder()
    context.set_forkserver_preload(["imgcls_search.executors.warm"])
    return context


def _keep_folder_out() -> None:
    """Keep the working folder, where a user may have a file of any name, from being searched for modules.

    `python -c`, which multiprocessing starts its processes with, puts it before all others. Python 3.10 has no setting
    against that, and up to 3.12 the fork server is not told where this process finds its modules.
    """
    spawn = util.spawnv_passfds

    def spawn_clean(path: bytes, arguments: Sequence[Any], passed: Sequence[int]) -> int:
        *start, option, code = arguments
        if option == "-c":
            code = f"import sys; sys.path[:] = {module_path() if _is_ours() else sys.path!r}; {code}"
        return int(spawn(path, [*start, option, code], passed))

    util.spawnv_passfds = spawn_clean  # type: ignore[assignment]


def _keep_script_out() -> None:
    """Keep our processes from running the script again that this package is used in, and from importing beside it.

    multiprocessing runs the main module in each new process, for functions that are defined there. Ours never are, and
    a script without `if __name__ == "__main__"` would start its search again in each of them.
    """
    prepare = spawn.get_preparation_data

    def prepare_clean(name: str) -> dict[str, Any]:
        data = dict(prepare(name))
        if _is_ours():
            data.pop("init_main_from_path", None)
            data.pop("init_main_from_name", None)
            data["sys_path"] = module_path()
        return data

    spawn.get_preparation_data = prepare_clean


def _find_short_folder() -> None:
    """Choose where multiprocessing's sockets are: a path of some 100 characters is all that the system takes.

    Raises:
        UserError: the folder of temporary files is too long, and there is no other one.
    """
    usual = tempfile.gettempdir()
    if len(os.fsencode(usual)) <= MOST_FOLDER_BYTES:
        return
    try:
        tempfile.tempdir = short_folder()
        util.get_temp_dir()
    finally:
        tempfile.tempdir = usual


def short_folder() -> str:
    """Return a folder of temporary files with a path that leaves room for a socket's name.

    Raises:
        UserError: there is none.
    """
    usual = tempfile.gettempdir()
    for folder in (usual, os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp", "/var/tmp", "/dev/shm"):  # noqa: S108
        is_short = 0 < len(os.fsencode(folder)) <= MOST_FOLDER_BYTES
        if is_short and Path(folder).is_dir() and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise UserError(
        f"TMPDIR: {usual} is too long for the sockets of processes; allowed: at most {MOST_FOLDER_BYTES} bytes"
    )


@contextlib.contextmanager
def deaf_to_terminal() -> Iterator[None]:
    """Let a process be born that ignores Ctrl-C and the terminal's end, which reach all processes; the run decides."""
    if hasattr(signal, "pthread_sigmask"):
        # What comes meanwhile is heard afterwards; the new process never unblocks them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGHUP])
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
