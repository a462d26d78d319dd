"""Worker processes on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from multiprocessing.connection import wait

from imgcls_search.executors.slots import SlotsExecutor
from imgcls_search.executors.worker_process import WorkerProcess


def usable_slots(devices: Sequence[str], workers: int | None, most: int) -> list[str]:
    """Return the device of each worker: one a core on a CPU, one a device elsewhere, but no more than `most`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = workers or (cores if list(devices) == ["cpu"] else len(devices))
    return [devices[index % len(devices)] for index in range(max(1, min(count, most)))]


class LocalExecutor(SlotsExecutor[WorkerProcess]):
    """Runs jobs in processes that live for many trials; a process that dies is replaced when the next job comes."""

    def __init__(self, devices: Sequence[str]) -> None:
        """Start one worker for each entry of `devices`, such as `["cpu", "cpu"]` or `["cuda:0"]`."""
        super().__init__([WorkerProcess(f"worker-{index}", device) for index, device in enumerate(devices)])

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
            self._take_in(by_connection[connection].receive())  # type: ignore[index]
