"""What a draft needs to know of the machine: cores, GPU, memory, room on the disk."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from imgcls_search.executors import processes
from imgcls_search.executors.local import usable_slots

MOST_SLOTS = 1_000
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What trials have to run on."""

    device: str
    """`cpu`, `cuda` or `mps`."""

    hardware: str
    """The processor's or the GPU's name."""

    workers: int
    """Trials that train at a time unless a space says otherwise."""

    memory_bytes: float
    """Free memory: a GPU's own, or that of the machine."""

    disk_bytes: float
    """Free where studies and decoded images are kept."""

    slowdown: float = 1.0
    """How many times as long a training takes on it as on an idle machine, because other processes compute too."""

    @property
    def memory_each(self) -> float:
        """Memory of each worker, bytes."""
        return self.memory_bytes / self.workers

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def look_at_machine(root: Path) -> Machine:
    """Return what this machine has; studies are kept under `root`, which need not be there yet."""
    # In its own process: a process that uses a GPU holds some of its memory until it ends.
    process, connection = processes.start(_look, "machine")
    try:
        devices, hardware, gpu_bytes = connection.recv()
    except EOFError:
        devices, hardware, gpu_bytes = ["cpu"], "unknown", None
    finally:
        connection.close()
        process.join()
    device, workers = devices[0].partition(":")[0], len(usable_slots(devices, None, MOST_SLOTS))
    return Machine(
        device=device,
        hardware=hardware,
        workers=workers,
        memory_bytes=free_memory() if gpu_bytes is None else gpu_bytes,
        disk_bytes=float(shutil.disk_usage(_existing(root)).free),
        slowdown=_slowdown(workers) if device == "cpu" else 1.0,
    )


def _look(connection: Connection) -> None:
    import torch

    from imgcls_search.training.device import available_devices, hardware

    devices: Sequence[str] = available_devices("auto")
    is_cuda = devices[0].startswith("cuda")
    free = sum(float(torch.cuda.mem_get_info(device)[0]) for device in devices) if is_cuda else None
    connection.send((devices, hardware(devices[0]), free))


def _slowdown(workers: int) -> float:
    """Return how much longer workers take beside the processes that computed in the last minute.

    The system shares its cores evenly among all. One of these processes was this one.
    """
    with contextlib.suppress(OSError, AttributeError):
        others = max(0.0, os.getloadavg()[0] - 1)
        return max(1.0, (others + workers) / max(workers, os.cpu_count() or 1))
    # Not every system counts them.
    return 1.0


def free_memory() -> float:
    """Return the bytes that this process and its children may still take."""
    found = [_of_system()]
    for limit in CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            found.append(float(Path(limit).read_text()))
    return min(found)


def _of_system() -> float:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _existing(path: Path) -> Path:
    """Return the nearest folder above a path that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
