"""Worker processes on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

from search.executors import processes
from search.protocol import Event, Failed, Held, Job, MilestoneReached, Stopped, WorkerDied


def usable_slots(devices: Sequence[str], workers: int | None, most: int) -> list[str]:
    """Return the device of each worker: one a core on a CPU, one a device elsewhere, but no more than `most`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = workers or (cores if list(devices) == ["cpu"] else len(devices))
    return [devices[index % len(devices)] for index in range(max(1, min(count, most)))]


_ENDS = (MilestoneReached, Stopped, Failed)
"""What a worker says last of a job."""


class LocalExecutor:
    """Runs jobs in processes that live for many trials; a process that dies is replaced when the next job comes."""

    def __init__(self, devices: Sequence[str]) -> None:
        """Start one worker for each entry of `devices`, such as `["cpu", "cpu"]` or `["cuda:0"]`."""
        self.workers = [_Worker(f"worker-{index}", device) for index, device in enumerate(devices)]
        self.events: deque[Event] = deque()
        self.alone: Job | None = None
        """A job that must run alone: it waits until all others rest, or runs."""
        self.alone_worker: _Worker | None = None
        for worker in self.workers:
            worker.spawn()

    def free_slots(self) -> int:
        """Return how many workers have nothing to do; none is free while a job runs alone."""
        if self.alone is not None:
            return 0
        return sum(worker.job is None for worker in self.workers)

    def start(self, job: Job) -> None:
        """Hand a job to a free worker; to the one that had the trial last, if that is free."""
        free = [worker for worker in self.workers if worker.job is None]
        assert free, "start was called without a free slot"
        if job.kind == "time":
            self.alone = job
            for busy in (worker for worker in self.workers if worker.job is not None):
                busy.hold()
            self._attend_alone()
            return
        worker = next((worker for worker in free if worker.last_trial == job.trial), free[0])
        worker.take(job)

    def next_event(self, timeout: float) -> Event | None:
        """Return the next event, or None after `timeout` seconds without one."""
        if not self.events:
            self._listen(timeout)
        return self.events.popleft() if self.events else None

    def stop(self, trial: int) -> None:
        """Ask the worker of a trial to save and stop."""
        if self.alone is not None and self.alone.trial == trial and self.alone_worker is None:
            self.events.append(Stopped(trial=trial))
            self._end_alone()
        for worker in self.workers:
            if worker.job is not None and worker.job.trial == trial:
                worker.ask_to_stop()

    def kill(self, trial: int, reason: str) -> None:
        """End the worker of a trial at once; a `WorkerDied` event with the reason follows."""
        for worker in self.workers:
            if worker.job is not None and worker.job.trial == trial:
                worker.kill()
                self.events.append(WorkerDied(trial=trial, worker=worker.name, reason=reason))
        self._attend_alone()

    def clock(self) -> float:
        """Return seconds since an arbitrary moment."""
        return time.monotonic()

    def close(self) -> None:
        """End all workers now."""
        for worker in self.workers:
            worker.kill()

    def _listen(self, timeout: float) -> None:
        by_connection = {worker.connection: worker for worker in self.workers if worker.connection is not None}
        for connection in wait(list(by_connection), timeout):
            worker = by_connection[connection]  # type: ignore[index]
            event = worker.receive()
            if event is not None and not isinstance(event, Held):
                self.events.append(event)
            self._attend_alone()

    def _attend_alone(self) -> None:
        """Start the job that must run alone once all others rest; when it ended, let them go on."""
        if self.alone is None:
            return
        if self.alone_worker is not None:
            if self.alone_worker.job is None:
                self._end_alone()
        elif all(worker.job is None or worker.is_resting for worker in self.workers):
            self.alone_worker = next(worker for worker in self.workers if worker.job is None)
            self.alone_worker.take(self.alone)

    def _end_alone(self) -> None:
        self.alone = self.alone_worker = None
        for worker in self.workers:
            worker.go_on()


class _Worker:
    """The run's end of one worker process."""

    def __init__(self, name: str, device: str) -> None:
        self.name = name
        self.device = device
        self.job: Job | None = None
        self.is_held = False
        self.is_resting = False
        self.last_trial = -1
        self.connection: Connection | None = None

    def spawn(self) -> None:
        self.oom_kills = _oom_kills()
        self.process, self.connection = processes.start(_work, self.name, self.name, self.device)

    def take(self, job: Job) -> None:
        if self.connection is None or not self.process.is_alive():
            self.kill()
            self.spawn()
        assert self.connection is not None
        self.job, self.last_trial = job, job.trial
        self.is_held = self.is_resting = False
        # A worker that died this instant is noticed by the next listen, as any death is.
        with contextlib.suppress(OSError):
            self.connection.send(job)

    def hold(self) -> None:
        """Ask the process to rest between two steps; it answers, or its job ends before."""
        self.is_held = True
        self._say("hold")

    def go_on(self) -> None:
        if self.is_held:
            self.is_held = self.is_resting = False
            self._say("go on")

    def ask_to_stop(self) -> None:
        self._say("stop")

    def _say(self, message: str) -> None:
        with contextlib.suppress(OSError):
            assert self.connection is not None
            self.connection.send(message)

    def receive(self) -> Event | None:
        assert self.connection is not None
        try:
            event: Event = self.connection.recv()
        except (EOFError, OSError):
            return self._died()
        if isinstance(event, Held):
            # Unless it was told to go on in the meantime.
            self.is_resting = self.is_held
        elif isinstance(event, _ENDS):
            self.job = None
        return event

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

    def kill(self) -> None:
        if self.connection is not None:
            self.process.kill()
            self.process.join()
            self._hang_up()
        self.job = None

    def _hang_up(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection = None


def _work(connection: Connection, name: str, device: str) -> None:
    # Imported here, in the worker: the run process never needs torch.
    from search.worker import main

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
