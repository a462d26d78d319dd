"""The main loop of a worker process: jobs come in, events go out. Does not import Optuna."""

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
    Continue,
    Event,
    Failed,
    GroupMember,
    Job,
    Message,
    Pause,
    Paused,
    Stop,
)
from imgcls_search.training.device import settle_in
from imgcls_search.training.group import Group, GroupLostError
from imgcls_search.worker.job_runner import JobRunner


def main(connection: Connection, name: str, device: str, member: GroupMember | None = None) -> None:
    """Run jobs from a connection until its other end closes; with a `member`, together with other processes."""
    # Ctrl-C is already ignored, see `executors.processes`.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Crashes in compiled code then leave a stack trace in the trial's log.
    faulthandler.enable(file=2)
    # Any name can be written to the log.
    terminal.show_all_characters()
    settle_in(device)
    inbox = Inbox(connection)
    try:
        _work(connection, name, inbox, JobRunner(device, None if member is None else Group(member, device)))
    except GroupLostError:
        # Another process died, or its failure is about to be reported: the run restarts all of them.
        os._exit(GROUP_LOST)


def _work(connection: Connection, name: str, inbox: Inbox, runner: JobRunner) -> None:
    while True:
        job = inbox.jobs.get()
        if runner.leads:
            with _logging_to(Path(job.log)):
                for event in runner.work(
                    job,
                    inbox.stop_requested,
                    wait_while_paused=inbox.wait_while_paused,
                    report_alive=inbox.report_alive,
                ):
                    connection.send(dataclasses.replace(event, worker=name))
        else:
            # The leader of a group writes the log and reports events; other processes report only their failures.
            with _logging_to(Path(job.log), only_errors=True):
                for event in runner.work(job, inbox.stop_requested):
                    if isinstance(event, Failed):
                        connection.send(dataclasses.replace(event, worker=name))


class Inbox:
    """Reads the connection in a thread, to notice a stop or the end of the run during computations."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self.stop_requested = threading.Event()
        self.may_continue = threading.Event()
        self.may_continue.set()
        threading.Thread(target=self._listen, daemon=True).start()

    def wait_while_paused(self) -> None:
        """Return at once, unless the run requested a pause: then report it and wait until it ends."""
        if not self.may_continue.is_set():
            self.connection.send(Paused(trial=-1))
            self.may_continue.wait()

    def report_alive(self, trial: int) -> None:
        """Report that a trial is alive during a step that takes longer than an epoch."""
        self.connection.send(Event(trial=trial))

    def _listen(self) -> None:
        while True:
            try:
                message: Message = self.connection.recv()
            except (EOFError, OSError):
                # The run has ended; an orphan would continue training and overwrite checkpoints.
                os._exit(1)
            match message:
                case Job():
                    self.stop_requested.clear()
                    self.jobs.put(message)
                case Stop():
                    self.stop_requested.set()
                case Pause():
                    self.may_continue.clear()
                case Continue():
                    pass
            if not isinstance(message, Pause):
                self.may_continue.set()


class _logging_to:  # noqa: N801 - used as a function
    """Append everything that the process prints, from any library, to a file."""

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
            # Saving the checkpoint fails on the same full disk and ends the job with the reason.
            _print_to(Path(os.devnull))
        if self.only_errors:
            _print_to(Path(os.devnull), (1,))

    def __exit__(self, *failure: object) -> None:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:
            # Output that a full disk rejected must not appear on the terminal later.
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
