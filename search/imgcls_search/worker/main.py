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
    Event,
    GoOn,
    Held,
    Hold,
    Job,
    Message,
    Stop,
)
from imgcls_search.training.device import settle_in
from imgcls_search.worker.job_runner import JobRunner


def main(connection: Connection, name: str, device: str) -> None:
    """Take jobs from a connection until its other end closes."""
    # Ctrl-C is ignored already, see `executors.processes`.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A crash in compiled code then leaves its stack in the log of the trial.
    faulthandler.enable(file=2)
    # A log is never refused a name.
    terminal.show_all_characters()
    settle_in(device)
    inbox = Inbox(connection)
    runner = JobRunner(device)
    while True:
        job = inbox.jobs.get()
        with _logging_to(Path(job.log)):
            for event in runner.work(job, inbox.stop_requested, rest=inbox.rest, live=inbox.live):
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
        """Return at once, or, where the run asked for quiet, say so and wait until it is over."""
        if not self.may_go_on.is_set():
            self.connection.send(Held(trial=-1))
            self.may_go_on.wait()

    def live(self, trial: int) -> None:
        """Say that a trial goes on, where what it does takes longer than an epoch."""
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

    def __init__(self, path: Path) -> None:
        self.path = path

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


def _print_to(path: Path) -> None:
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
