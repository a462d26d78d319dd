"""Worker processes on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import Literal

from imgcls_search.errors import DeviceError
from imgcls_search.executors.slots import SlotsExecutor
from imgcls_search.executors.worker_process import WorkerProcess
from imgcls_search.training.loopback import interface


def num_cores() -> int:
    """Return how many cores of this machine may be used."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_slots(devices: Sequence[str], workers: int | None, most: int) -> list[str]:
    """Return the device of each worker: one per core on a CPU, one per device otherwise, but no more than `most`."""
    count = workers or (num_cores() if list(devices) == ["cpu"] else len(devices))
    return [devices[index % len(devices)] for index in range(max(1, min(count, most)))]


def usable_groups(
    devices: Sequence[str], wanted: int | Literal["auto"], workers: int | None, most: int
) -> list[tuple[str, ...]]:
    """Return the devices of each worker, `wanted` of them, at most `most` workers.

    A device of a CPU is a core: a process with one thread. `auto` divides all devices by the number of workers.

    Raises:
        DeviceError: there are fewer devices than wanted, or they cannot communicate.
    """
    if wanted == 1:
        return [(device,) for device in usable_slots(devices, workers, most)]
    every = list(devices) * num_cores() if list(devices) == ["cpu"] else list(devices)
    each = devices_each(wanted, len(every), workers, f"this machine has {_counted(every)}")
    if each > 1 and interface() is None:
        lacks = "this machine has no network interface for its own processes (loopback)"
        raise DeviceError(f"training.devices: {wanted}: {lacks}; allowed here: 1")
    count = max(1, min(workers or len(every) // each, most))
    return [tuple(every[(worker * each + place) % len(every)] for place in range(each)) for worker in range(count)]


def devices_each(wanted: int | Literal["auto"], there: int, workers: int | None, told: str) -> int:
    """Return how many devices train a trial.

    Raises:
        DeviceError: there are fewer; `told` says how many.
    """
    if wanted == "auto":
        return max(1, there // (workers or 1))
    if wanted > there:
        raise DeviceError(f"training.devices: {wanted}: {told}; allowed here: auto, {_range(there)}")
    return wanted


def _counted(devices: Sequence[str]) -> str:
    kind = {"cpu": "CPU core", "cuda": "GPU"}.get(devices[0].partition(":")[0], f"{devices[0]} device")
    return f"{len(devices)} {kind}{'s' if len(devices) > 1 else ''}"


def _range(most: int) -> str:
    return "1" if most == 1 else f"1 to {most}"


class LocalExecutor(SlotsExecutor[WorkerProcess]):
    """Runs jobs in processes that live for many trials; a process that dies is replaced when the next job comes."""

    def __init__(self, devices: Sequence[str | Sequence[str]]) -> None:
        """Start one worker for each entry of `devices`, such as `["cpu", "cpu"]` or `["cuda:0"]`.

        An entry may be several devices, which train a trial together.
        """
        super().__init__([WorkerProcess(f"worker-{index}", several) for index, several in enumerate(devices)])

    def clock(self) -> float:
        """Return seconds since an arbitrary moment."""
        return time.monotonic()

    def close(self) -> None:
        """End all workers now."""
        for worker in self.workers:
            worker.kill()

    def _listen(self, timeout: float) -> None:
        by_connection = {connection: worker for worker in self.workers for connection in worker.connections}
        for connection in wait(list(by_connection), timeout):
            worker = by_connection[connection]  # type: ignore[index]
            # A message from one process of a group may have ended the others.
            if connection in worker.connections:
                self._take_in(worker.receive(connection))
