"""The executor's side of one worker process on this machine."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from imgcls_search.executors import processes
from imgcls_search.executors.slots import Slot
from imgcls_search.protocol import GROUP_LOST, Event, Failed, GroupMember, Job, Message, WorkerDied


class WorkerProcess(Slot):
    """A process that lives for many trials; one that died is replaced when the next job comes.

    With several devices it is a group with a process for each. One speaks for all, and none outlives another.
    """

    def __init__(
        self, name: str, devices: str | Sequence[str], start: Callable[..., tuple[Any, Connection]] = processes.start
    ) -> None:
        """Start the process by `start`, as `processes.start` does; it trains on a device such as `cpu` or `cuda:0`."""
        super().__init__(name)
        self.devices = [devices] if isinstance(devices, str) else list(devices)
        self.start = start
        self.connection: Connection | None = None
        self.others: list[tuple[Any, Connection]] = []
        """The processes of the group that do not speak for it."""
        self.folder: Path | None = None
        """The folder through which the processes of the group find each other."""
        self._spawn()

    @property
    def connections(self) -> list[Connection]:
        """The connections to listen to; none if the process is dead."""
        return [] if self.connection is None else [self.connection, *(connection for _, connection in self.others)]

    def take(self, job: Job) -> None:
        """Hand a job to the process."""
        if self.connection is None or not all(process.is_alive() for process in self._processes()):
            self.kill()
            self._spawn()
        super().take(job)

    def tell(self, message: Message) -> None:
        """Send a message to the process; if it has just died, the next `receive` notices that."""
        assert self.connection is not None
        # Only training uses the group, and the process that speaks for all tells the others when to stop.
        is_for_all = isinstance(message, Job) and message.kind == "train"
        for connection in self.connections if is_for_all else [self.connection]:
            with contextlib.suppress(OSError):
                connection.send(message)

    def receive(self, connection: Connection | None = None) -> Event | None:
        """Return the event of a process; if the process died, that of its job's end, or None if it had no job."""
        assert self.connection is not None
        try:
            event: Event = (connection or self.connection).recv()
        except (EOFError, OSError):
            return self._died(connection or self.connection)
        self.note(event)
        if isinstance(event, Failed) and self.others:
            # The others wait for the one that failed.
            self.kill()
        return event

    def kill(self) -> None:
        """End the process now."""
        if self.connection is not None:
            for process in self._processes():
                process.kill()
            for process in self._processes():
                process.join()
            self._hang_up()
        self.job = None

    def _processes(self) -> list[Any]:
        return [self.process, *(process for process, _ in self.others)]

    def _spawn(self) -> None:
        self.oom_kills = _oom_kills()
        if len(self.devices) == 1:
            self.process, self.connection = self.start(_work, self.name, self.name, self.devices[0])
            return
        self.folder = Path(tempfile.mkdtemp(prefix="imgcls-search-"))
        found: list[tuple[Any, Connection]] = []
        try:
            for rank, device in enumerate(self.devices):
                member = GroupMember(rank=rank, size=len(self.devices), file=str(self.folder / "meeting"))
                found.append(self.start(_work, f"{self.name}.{rank}", self.name, device, member))
        finally:
            # If one cannot be started, those before it would wait for it.
            if found:
                (self.process, self.connection), *self.others = found
            if len(found) < len(self.devices):
                self.kill()
                shutil.rmtree(self.folder, ignore_errors=True)

    def _died(self, connection: Connection) -> Event | None:
        job, self.job = self.job, None
        code, who = self._first_end(connection)
        # The remaining processes wait for the dead one.
        self.kill()
        if job is None:
            return None
        was_memory = code == -signal.SIGKILL and _oom_kills() > self.oom_kills
        how = "killed by the system, which ran out of memory" if was_memory else _describe_exit(code)
        return WorkerDied(trial=job.trial, worker=self.name, reason=f"{who} died ({how})", is_out_of_memory=was_memory)

    def _first_end(self, connection: Connection) -> tuple[int | None, str]:
        """Return the exit code of the process that died first, and its name for messages."""
        ended = self._processes()[self.connections.index(connection)]
        ended.join()
        if ended.exitcode != GROUP_LOST or not self.others:
            return ended.exitcode, self._called(ended)
        for process in self._processes():
            if process is not ended and not process.is_alive():
                process.join()
                if process.exitcode != GROUP_LOST:
                    return process.exitcode, self._called(process)
        return GROUP_LOST, self.name

    def _called(self, process: Any) -> str:
        if not self.others:
            return self.name
        return f"{self.name}, device {self._processes().index(process) + 1} of {len(self.devices)},"

    def _hang_up(self) -> None:
        for connection in self.connections:
            connection.close()
        self.connection, self.others = None, []
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _work(connection: Connection, name: str, device: str, member: GroupMember | None = None) -> None:
    # Imported here, in the worker: the run process never needs torch.
    from imgcls_search.worker.main import main

    main(connection, name, device, member)


def _oom_kills() -> int:
    """Return how many processes the system has killed for lack of memory; 0 if it does not say."""
    # The count of this container if there is one, otherwise of the machine.
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
