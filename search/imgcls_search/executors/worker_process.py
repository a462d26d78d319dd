"""One worker process on this machine, from outside."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from imgcls_search.executors import processes
from imgcls_search.executors.slots import Slot
from imgcls_search.protocol import Event, Job, Message, WorkerDied


class WorkerProcess(Slot):
    """A process that lives for many trials; one that died is replaced when the next job comes."""

    def __init__(self, name: str, device: str, start: Callable[..., tuple[Any, Connection]] = processes.start) -> None:
        """Start the process, in the way of `processes.start`; it trains on `device`, such as `cpu` or `cuda:0`."""
        super().__init__(name)
        self.device = device
        self.start = start
        self.connection: Connection | None = None
        self._spawn()

    def take(self, job: Job) -> None:
        """Hand a job to the process."""
        if self.connection is None or not self.process.is_alive():
            self.kill()
            self._spawn()
        super().take(job)

    def tell(self, message: Message) -> None:
        """Send a message to the process; one that died this instant is noticed by the next `receive`."""
        with contextlib.suppress(OSError):
            assert self.connection is not None
            self.connection.send(message)

    def receive(self) -> Event | None:
        """Return what the process says; if it died, what becomes of its job, or None where it had none."""
        assert self.connection is not None
        try:
            event: Event = self.connection.recv()
        except (EOFError, OSError):
            return self._died()
        self.note(event)
        return event

    def kill(self) -> None:
        """End the process now."""
        if self.connection is not None:
            self.process.kill()
            self.process.join()
            self._hang_up()
        self.job = None

    def _spawn(self) -> None:
        self.oom_kills = _oom_kills()
        self.process, self.connection = self.start(_work, self.name, self.name, self.device)

    def _died(self) -> Event | None:
        job, self.job = self.job, None
        self.process.join()
        code = self.process.exitcode
        self._hang_up()
        if job is None:
            return None
        was_memory = code == -signal.SIGKILL and _oom_kills() > self.oom_kills
        how = "killed by the system, which ran out of memory" if was_memory else _describe_exit(code)
        return WorkerDied(
            trial=job.trial, worker=self.name, reason=f"{self.name} died ({how})", is_out_of_memory=was_memory
        )

    def _hang_up(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection = None


def _work(connection: Connection, name: str, device: str) -> None:
    # Imported here, in the worker: the run process never needs torch.
    from imgcls_search.worker.main import main

    main(connection, name, device)


def _oom_kills() -> int:
    """Return how many processes the system has killed for want of memory; 0 where it does not tell."""
    # Of this container where there is one, otherwise of the machine.
    for path in (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat")):
        with contextlib.suppress(OSError, ValueError):
            found = dict(line.split(maxsplit=1) for line in path.read_text().splitlines())
            if "oom_kill" in found:
                return int(found["oom_kill"])
    return 0


def _describe_exit(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
