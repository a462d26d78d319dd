"""Command lines that start from a process in which torch and Optuna are imported already; Linux only.

`Warm` starts one such process. For each command it forks a child with the folder, environment, arguments and streams of
the command, which then runs as `python -m imgcls_search` would: it has a process id, signals, an exit code and a way
to its end of its own, and its fork server, forked too instead of imported anew, starts helper and workers as ever. What
is not as in a new interpreter: modules are imported already, and all commands of one `Warm` hash strings with one seed.

A script starts from it too; the commands that the script starts with `subprocess` are forked from the script.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import random
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import types
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from multiprocessing import util
from pathlib import Path
from typing import IO, Any

LIBRARIES = ("optuna.storages", "optuna.artifacts", "sqlalchemy.dialects.sqlite", "rich.live", "scipy.special")
"""What a command would import late, and what knows no environment variable of a test."""


SPAWN = util.spawnv_passfds
"""How multiprocessing starts a new interpreter."""


class Warm:
    """A process that is forked for each command."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.requests = ours
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm", str(theirs.fileno())],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()

    def start(self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], script: Path | None = None) -> Command:
        """Begin `imgcls-search`, or a script, with these arguments."""
        request = {"argv": list(arguments), "cwd": str(cwd), "env": dict(env), "script": script and str(script)}
        return Command(self.requests, request)

    def close(self) -> None:
        """Let it end; commands under way go on."""
        self.requests.close()
        self.process.wait(timeout=30)


class Command:
    """A process, with what tests use of `subprocess.Popen`."""

    def __init__(self, requests: socket.socket, request: Mapping[str, Any]) -> None:
        self.answers, theirs = socket.socketpair()
        pipes = [os.pipe(), os.pipe()]
        with open(os.devnull) as nothing:  # noqa: PTH123 - a stream for the command
            fds = [nothing.fileno(), *(write for _, write in pipes), theirs.fileno()]
            socket.send_fds(requests, [json.dumps(request).encode()], fds)
        theirs.close()
        self.stdout, self.stderr = (self._reading(*pipe) for pipe in pipes)
        self.args = request["argv"]
        self.returncode: int | None = None
        self.output: tuple[str, str] | None = None
        self.pid = int(self._answer(None))

    @staticmethod
    def _reading(read: int, write: int) -> IO[str]:
        os.close(write)
        return os.fdopen(read, encoding="utf-8")

    def _answer(self, timeout: float | None) -> bytes:
        self.answers.settimeout(timeout)
        try:
            return self.answers.recv(100)
        except (TimeoutError, BlockingIOError):
            raise subprocess.TimeoutExpired(self.args, timeout or 0) from None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code, negative for a signal."""
        if self.returncode is None:
            answer = self._answer(timeout)
            assert answer, "the process that commands are forked from has died"
            self.returncode = int(answer)
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code, or None while the process lives."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Return all output once every process that could write has closed it, and the process has ended."""
        if self.output is None:
            with ThreadPoolExecutor(2) as pool:
                reading = [pool.submit(stream.read) for stream in (self.stdout, self.stderr)]
                if wait(reading, timeout).not_done:
                    self.kill()
                    raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.wait(timeout)
            self.output = reading[0].result(), reading[1].result()
            for stream in (self.stdout, self.stderr, self.answers):
                stream.close()
        return self.output

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it now."""
        self.send_signal(signal.SIGKILL)


def import_all() -> None:
    """Import what commands, helpers and workers import."""
    import imgcls_search

    for module in pkgutil.walk_packages(imgcls_search.__path__, "imgcls_search."):
        # Ray reads its environment when it is imported; only who asks for a cluster imports it.
        if module.name != "imgcls_search.__main__" and not module.name.startswith("imgcls_search.executors.ray."):
            importlib.import_module(module.name)
    for name in LIBRARIES:
        importlib.import_module(name)


def wait_for_request(requests: socket.socket) -> dict[str, Any]:
    """Fork for each request and report each end; return, in the forked process only, the request."""
    answers: dict[int, tuple[int, socket.socket]] = {}
    """The process id and the connection of each command under way, by what tells its end."""
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd in answers:
                    selector.unregister(key.fd)
                    pid, connection = answers.pop(key.fd)
                    os.close(key.fd)
                    _, status = os.waitpid(pid, 0)
                    _tell(connection, os.waitstatus_to_exitcode(status))
                    continue
                message, fds, _, _ = socket.recv_fds(requests, 1_000_000, 4)
                if not message:
                    sys.exit(0)
                pid = os.fork()
                if pid == 0:
                    return become(json.loads(message), fds)
                connection = socket.socket(fileno=fds.pop())
                connection.sendall(str(pid).encode())
                for fd in fds:
                    os.close(fd)
                told = os.pidfd_open(pid)
                answers[told] = pid, connection
                selector.register(told, selectors.EVENT_READ)


def _tell(connection: socket.socket, code: int) -> None:
    # Nobody may be left to be told.
    with connection, contextlib.suppress(BrokenPipeError):
        connection.sendall(str(code).encode())


def become(request: dict[str, Any], streams: Sequence[int]) -> dict[str, Any]:
    """Take the streams, folder and environment of a command; forget those of the process forked from."""
    for target, fd in enumerate(streams[:3]):
        os.dup2(fd, target)
    close_all_but([])
    os.chdir(request["cwd"])
    before = set(os.environ.get("PYTHONPATH", "").split(os.pathsep))
    os.environ.clear()
    os.environ.update(request["env"])
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in before]
    script = request.get("script")
    sys.path[:1] = [str(Path(script).parent) if script else request["cwd"], *paths]
    sys.argv = [script or "imgcls-search", *request["argv"]]
    import numpy as np

    # What a new process would take from the operating system; Python's own generator sees to itself.
    random.seed()
    np.random.seed()
    return request


def close_all_but(kept: Sequence[int]) -> None:
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:  # noqa: PTH208
        if fd > 2 and fd not in kept:
            # One of them is gone: it listed them.
            with contextlib.suppress(OSError):
                os.close(fd)


def fork_server() -> None:
    """Start the process that helpers and workers are forked from, now: later there may be locks that a fork breaks."""
    from imgcls_search.executors import processes

    started, util.spawnv_passfds = SPAWN, fork_python
    processes.warm_up()
    util.spawnv_passfds = started


def fork_python(path: bytes, arguments: Sequence[str], passed: Sequence[int]) -> int:
    """Run `python -c CODE` in a fork; stands in for `multiprocessing.util.spawnv_passfds`, which starts a program."""
    start = arguments.index("-c")
    code, *argv = arguments[start + 1 :]
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        close_all_but(passed)
        forget_handlers()
        sys.argv = ["-c", *argv]
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(code, {"__name__": "__main__"})  # noqa: S102 - multiprocessing's own
        status = 0
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def forget_handlers() -> None:
    """Answer signals as a new program, which knows none of its parent's handlers."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


class ForkingPopen(subprocess.Popen):  # type: ignore[type-arg]
    """Starts `python -m imgcls_search` as a fork of this process, and everything else as ever."""

    def __init__(self, args: Any, *more: Any, **settings: Any) -> None:
        if not more and isinstance(args, list) and args[:3] == [sys.executable, "-m", "imgcls_search"]:
            # It is called where the program would be executed: streams, folder and session are the child's by then.
            settings["preexec_fn"] = functools.partial(be_command, list(map(str, args[3:])), settings.get("env"))
            # What is still to be written is not the child's to write.
            sys.stdout.flush()
            sys.stderr.flush()
        super().__init__(args, *more, **settings)


def be_command(arguments: Sequence[str], env: Mapping[str, str] | None) -> None:
    """Be `python -m imgcls_search`, and never return."""
    code = 1
    try:
        gc.enable()
        # Temporary folders of the process forked from are not this one's to delete when it ends.
        weakref.finalize._registry.clear()  # type: ignore[attr-defined]
        request = {"argv": arguments, "cwd": os.getcwd(), "env": dict(os.environ if env is None else env)}  # noqa: PTH109
        become(request, range(3))
        forget_handlers()
        # As Python does when it starts.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        fork_server()
        code = run_program(None)
    finally:
        end(code)


def main() -> None:
    """Fork for each request; in a fork, be the command or the script."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    import_all()
    assert threading.active_count() == 1, "a thread would not outlive a fork, but what it holds locked would"
    # What was imported is nothing for a garbage collector to look through, and to copy, in each fork.
    gc.collect()
    gc.freeze()
    script = wait_for_request(requests).get("script")
    if script:
        subprocess.Popen = ForkingPopen  # type: ignore[misc]
        util.spawnv_passfds = fork_python
    else:
        fork_server()
    end(run_program(script))


def run_program(script: str | None) -> int:
    """Be `python -m imgcls_search`, or `python SCRIPT`; return the exit code."""
    try:
        if script:
            runpy.run_path(script, run_name="__main__")
        else:
            runpy.run_module("imgcls_search", run_name="__main__", alter_sys=True)
    except SystemExit as ending:
        if ending.code is None or isinstance(ending.code, int):
            return ending.code or 0
        print(ending.code, file=sys.stderr)  # noqa: T201
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def end(code: int) -> None:
    """End as the interpreter does, but leave the modules standing: to take torch apart would cost a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    main()
