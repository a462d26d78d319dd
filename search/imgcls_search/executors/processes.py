"""Start processes that need torch."""

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
"""A socket's path has at most 107 bytes, 103 on a Mac; multiprocessing takes 33 of them, our fork server on Ray 43."""


def start(target: Callable[..., None], name: str, *arguments: Any) -> tuple[BaseProcess, Connection]:
    """Start `target(connection, *arguments)` in a new process; return it and our end of the connection."""
    context = _context()
    ours, theirs = context.Pipe()
    given = (target, dict(os.environ), theirs, *arguments)
    process = context.Process(target=_begin, args=given, name=name, daemon=True)  # type: ignore[attr-defined]
    warm_up()
    # With a fork server, do not block Ctrl-C: the server answers only after it has imported torch, and processes that
    # it forks ignore Ctrl-C as it does.
    with _as_ours(), contextlib.nullcontext() if _has_fork_server() else deaf_to_terminal():
        process.start()
    # Only the process may hold its end, so that each side notices when the other dies.
    theirs.close()
    return process, ours


def _begin(target: Callable[..., None], environment: Mapping[str, str], *arguments: Any) -> None:
    """Run the target in a process that shows warnings as the program does, however it was started."""
    # The fork server may be older than a variable that an option has set, such as folders of weights.
    os.environ.clear()
    os.environ.update(environment)
    terminal.show_plain_warnings()
    terminal.lock_bars_by_thread()
    target(*arguments)


def warm_up() -> None:
    """Start the fork server that the first `start` would wait for, and return at once."""
    if _has_fork_server():
        from multiprocessing import forkserver

        with deaf_to_terminal(), _as_ours():
            forkserver.ensure_running()


def abandon() -> None:
    """Kill the fork server, if there is one."""
    # Ctrl-C may come while the module is half imported.
    server = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    if server is not None and (pid := server._forkserver_pid) is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _has_fork_server() -> bool:
    return _context().get_start_method() == "forkserver"


_OURS = threading.local()
"""Whether the thread is starting one of our processes, rather than one of the program that uses this package."""


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
    # including replacements of dead workers. It never touches a GPU, whose state would not survive a fork.
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    _find_short_folder()
    context.set_forkserver_preload(["imgcls_search.executors.warm"])
    return context


def _keep_folder_out() -> None:
    """Keep the working folder, where a user may have a file of any name, off the module path.

    multiprocessing starts its processes with `python -c`, which puts that folder first. Python 3.10 has no setting
    against that, and up to 3.12 the fork server does not get the module path of this process.
    """
    spawn = util.spawnv_passfds

    def spawn_clean(path: bytes, arguments: Sequence[Any], passed: Sequence[int]) -> int:
        *start, option, code = arguments
        if option == "-c":
            code = f"import sys; sys.path[:] = {module_path() if _is_ours() else sys.path!r}; {code}"
        return int(spawn(path, [*start, option, code], passed))

    util.spawnv_passfds = spawn_clean  # type: ignore[assignment]


def _keep_script_out() -> None:
    """Keep our processes from running the user's script again, and from importing modules from its folder.

    multiprocessing runs the main module in each new process, for functions that are defined there. Ours are not, and a
    script without `if __name__ == "__main__"` would start its search again in each process.
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
    """Choose the folder of multiprocessing's sockets, whose paths may have only about 100 characters.

    Raises:
        UserError: the path of the temporary folder is too long, and there is no other folder.
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
    """Return a temporary folder whose path leaves room for a socket's name.

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
    """Make a process started in the block ignore Ctrl-C and the terminal's end, which reach all: the run decides."""
    if hasattr(signal, "pthread_sigmask"):
        # Signals that arrive meanwhile are handled afterwards; the new process never unblocks them.
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
