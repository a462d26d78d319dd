"""Inside a worker process: jobs come in, trainings go on, events go out. Knows no Optuna."""

from __future__ import annotations

import dataclasses
import faulthandler
import os
import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

from imgcls_search import terminal
from imgcls_search.protocol import (
    GROUP_LOST,
    Event,
    Failed,
    GoOn,
    GroupMember,
    Held,
    Hold,
    Job,
    Message,
    Stop,
)
from imgcls_search.training.device import settle_in
from imgcls_search.training.group import Group, GroupLostError
from imgcls_search.worker.job_runner import JobRunner


def main(connection: Connection, name: str, device: str, member: GroupMember | None = None) -> None:
    """Take jobs from a connection until its other end closes; with a `member`, together with other processes."""
    # Ctrl-C is ignored already, see `executors.processes`.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A crash in compiled code then leaves its stack in the log of the trial.
    faulthandler.enable(file=2)
    # A log is never refused a name.
    terminal.show_all_characters()
    settle_in(device)
    inbox = Inbox(connection)
    try:
        _work(connection, name, inbox, JobRunner(device, None if member is None else Group(member, device)))
    except GroupLostError:
        # Another process has died, or is about to be told of: the run starts all of them again.
        os._exit(GROUP_LOST)


def _work(connection: Connection, name: str, inbox: Inbox, runner: JobRunner) -> None:
    while True:
        job = inbox.jobs.get()
        if runner.leads:
            with _logging_to(Path(job.log)):
                for event in runner.work(job, inbox.stop_requested, rest=inbox.rest, live=inbox.live):
                    connection.send(dataclasses.replace(event, worker=name))
        else:
            # One of a group writes the log and tells what happens, unless something happens to another.
            with _logging_to(Path(job.log), only_errors=True):
                for event in runner.work(job, inbox.stop_requested):
                    if isinstance(event, Failed):
                        connection.send(dataclasses.replace(event, worker=name))


class Inbox:
    """Reads the connection in a thread, so that a stop, or the run's death, is seen while the job computes."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self.stop_requested = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        threading.Thread(target=self._listen, daemon=True).start()

    def rest(self) -> None:
        """Return at once, or, if the run requested a pause, say so and wait until it is over."""
        if not self.may_go_on.is_set():
            self.connection.send(Held(trial=-1))
            self.may_go_on.wait()

    def live(self, trial: int) -> None:
        """Report that a trial is alive while a step takes longer than an epoch."""
        self.connection.send(Event(trial=trial))

    def _listen(self) -> None:
        while True:
            try:
                message: Message = self.connection.recv()
            except (EOFError, OSError):
                # The run is gone; an orphan would go on training and overwrite checkpoints.
                os._exit(1)
            match message:
                case Job():
                    self.stop_requested.clear()
                    self.jobs.put(message)
                case Stop():
                    self.stop_requested.set()
                case Hold():
                    self.may_go_on.clear()
                case GoOn():
                    pass
            if not isinstance(message, Hold):
                self.may_go_on.set()


class _logging_to:  # noqa: N801 - used as a function
    """Send everything that the process prints, from any library, to the end of a file."""

    def __init__(self, path: Path, *, only_errors: bool = False) -> None:
        self.path, self.only_errors = path, only_errors

    def __enter__(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.kept = os.dup(1), os.dup(2)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _print_to(self.path)
        except OSError:
            # The checkpoint meets the same full disk, and ends the job with the reason.
            _print_to(Path(os.devnull))
        if self.only_errors:
            _print_to(Path(os.devnull), (1,))

    def __exit__(self, *failure: object) -> None:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:
            # What a full disk does not take shall not come out on the terminal later.
            _print_to(Path(os.devnull))
            sys.stdout.flush()
            sys.stderr.flush()
        for kept, target in zip(self.kept, (1, 2), strict=True):
            os.dup2(kept, target)
            os.close(kept)


def _print_to(path: Path, streams: tuple[int, ...] = (1, 2)) -> None:
    with path.open("ab") as file:
        for stream in streams:
            os.dup2(file.fileno(), stream)
