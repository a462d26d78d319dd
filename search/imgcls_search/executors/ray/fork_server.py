"""The fork server of a run's worker processes on a node; Linux only.

It outlives the actors, so that the worker of a new one does not wait until torch is imported. On the run's own node it
is itself forked from the fork server of the run's other processes.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import selectors
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from filelock import FileLock

from imgcls_search import digests
from imgcls_search.executors import processes

LINGER_SECONDS = 60.0
"""How long it waits for the next actor while no actor has a process."""


def fork_key(token: str, node: str) -> str:
    """Return the key that the actors of a run, identified by its token, share on a node."""
    return f"{token} {node}"


class ForkServer:
    """An actor's client of the fork server."""

    def __init__(self, folder: Path, key: str) -> None:
        """Use the server of a key, which all actors of a run on a node share; only the user may enter `folder`."""
        self.lock = FileLock(folder / "fork-server.lock")
        self.address = folder / f"{digests.of_text(key)[:16]}.socket"

    def start(self, target: Callable[..., None], _name: str, *arguments: Any) -> tuple[Forked, Connection]:
        """Start `target(connection, *arguments)` in a new process, without waiting for it; see `processes`."""
        ours, theirs = multiprocessing.Pipe()
        line = self._call()
        socket.send_fds(line, [b"fork"], [theirs.fileno()])
        theirs.close()
        ours.send((target, arguments, dict(os.environ)))
        return Forked(line), ours

    def lend(self) -> Callable[[], None]:
        """Start the server before the actors do, forked with torch already imported; return a function that ends it."""
        with self.lock, self._listen() as listener:
            process, connection = processes.start(_serve, "fork server", listener, os.getpid())

        def end() -> None:
            process.kill()
            process.join()
            connection.close()
            self.address.unlink(missing_ok=True)

        return end

    def _call(self) -> socket.socket:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with self.lock:
            try:
                line.connect(str(self.address))
            except OSError:
                # The server was not started yet, or was killed.
                self._begin()
                line.connect(str(self.address))
        return line

    def _listen(self) -> socket.socket:
        self.address.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(self.address))
        listener.listen()
        return listener

    def _begin(self) -> None:
        with self._listen() as listener:
            number = listener.fileno()
            # Ray has given this process the module path of the run.
            code = (
                f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main({os.getppid()}, {number})"
            )
            command = [sys.executable, "-c", code]
            subprocess.run(command, pass_fds=[number], start_new_session=True, check=True)  # noqa: S603


class Forked:
    """A forked process with the part of `multiprocessing`'s interface in use. It is killed when this object ends."""

    def __init__(self, line: socket.socket) -> None:
        self.line = line
        self.exitcode: int | None = None

    def is_alive(self) -> bool:
        """Tell whether the process is running, as far as is known."""
        try:
            self.line.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def kill(self) -> None:
        """Kill the process now."""
        with contextlib.suppress(OSError):
            self.line.shutdown(socket.SHUT_WR)

    def join(self) -> None:
        """Wait until the process has ended; its exit code is unknown if the server ended first."""
        with self.line, contextlib.suppress(OSError):
            answer = self.line.recv(100)
            self.exitcode = int(answer) if answer else None


@dataclass(frozen=True, kw_only=True)
class _Child:
    pid: int
    end: int
    """A file descriptor that becomes readable when the process has ended."""

    line: socket.socket


class _Server:
    def __init__(self, listener: socket.socket, parent: int) -> None:
        self.listener = listener
        self.parent = parent
        """A file descriptor of a process that this one must not outlive."""
        self.selector = selectors.DefaultSelector()
        for source in (listener, parent):
            self.selector.register(source, selectors.EVENT_READ)
        self.living = 0

    def serve(self) -> None:
        """Fork for each request, until no process has been left for `LINGER_SECONDS`."""
        while ready := self.selector.select(None if self.living else LINGER_SECONDS):
            key = ready[0][0]
            child: _Child | None = key.data
            if key.fd == self.parent:
                return
            if child is None:
                self._fork()
            elif key.fd == child.end:
                self._bury(child)
            else:
                # Its actor no longer needs it, or is dead.
                signal.pidfd_send_signal(child.end, signal.SIGKILL)
                self.selector.unregister(child.line)

    def _fork(self) -> None:
        line, _ = self.listener.accept()
        _, passed, _, _ = socket.recv_fds(line, 100, 1)
        if not passed:
            line.close()
            return
        pid = os.fork()
        if pid == 0:
            for fd in [*(key.fd for key in self.selector.get_map().values()), line.fileno()]:
                os.close(fd)
            os._exit(_be_worker(Connection(passed[0])))
        os.close(passed[0])
        child = _Child(pid=pid, end=os.pidfd_open(pid), line=line)
        for source in (child.end, child.line):
            self.selector.register(source, selectors.EVENT_READ, child)
        self.living += 1

    def _bury(self, child: _Child) -> None:
        _, status = os.waitpid(child.pid, 0)
        with contextlib.suppress(OSError):
            child.line.send(str(os.waitstatus_to_exitcode(status)).encode())
        self.selector.unregister(child.end)
        with contextlib.suppress(KeyError):
            self.selector.unregister(child.line)
        os.close(child.end)
        child.line.close()
        self.living -= 1


def _be_worker(connection: Connection) -> int:
    """Do what was requested, and return the exit code."""
    try:
        target, arguments, environment = connection.recv()
        os.environ.clear()
        os.environ.update(environment)
        target(connection, *arguments)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _serve(connection: Connection, listener: socket.socket, parent: int) -> None:
    # Otherwise a worker would hold it open.
    connection.close()
    _Server(listener, os.pidfd_open(parent)).serve()
    Path(listener.getsockname()).unlink(missing_ok=True)


def main(parent: int, number: int) -> None:
    """Serve the listening socket of a file descriptor, at most as long as the process `parent` lives."""
    listener, end = socket.socket(fileno=number), os.pidfd_open(parent)
    # When Ray ends an actor, it ends the actor's children too.
    if os.fork():
        os._exit(0)
    # The run decides about Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Imported here: an actor imports this module too, but needs no torch.
    importlib.import_module("imgcls_search.executors.warm")
    _Server(listener, end).serve()
    Path(listener.getsockname()).unlink(missing_ok=True)
