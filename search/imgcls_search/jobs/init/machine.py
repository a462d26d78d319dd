"""Facts about the machine for a draft: cores, GPU, memory, disk space."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls_search.executors import processes
from imgcls_search.executors.local import usable_slots

if TYPE_CHECKING:
    from torch import Tensor

MOST_SLOTS = 1_000
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The hardware that trials run on."""

    device: str
    """`cpu`, `cuda` or `mps`."""

    hardware: str
    """The processor's or the GPU's name."""

    workers: int
    """Number of trials that train in parallel, unless a space sets another."""

    memory_bytes: float
    """Free memory of the GPU, or of the machine without one."""

    disk_bytes: float
    """Free disk space where studies and decoded images are stored."""

    rates: tuple[float, float] | None = None
    """Multiply-accumulates per second of one core in prediction, for plain and for depthwise convolutions; None if not
    measured."""

    slowdown: float = 1.0
    """A training takes this many times as long as on an idle machine, because of other processes."""

    @property
    def memory_each(self) -> float:
        """Memory per worker in bytes."""
        return self.memory_bytes / self.workers

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for JSON."""
        return asdict(self)


def look_at_machine(root: Path) -> Machine:
    """Collect facts about this machine; studies are stored under `root`, which need not exist yet."""
    # In a separate process, because a process that uses a GPU holds some of its memory until it ends.
    process, connection = processes.start(_look, "machine")
    try:
        devices, hardware, gpu_bytes, pace = connection.recv()
    except EOFError:
        devices, hardware, gpu_bytes, pace = ["cpu"], "unknown", None, None
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
        rates=None if pace is None else pace.rates,
        slowdown=_slowdown(workers, 1.0 if pace is None else pace.waits) if device == "cpu" else 1.0,
    )


def _look(connection: Connection) -> None:
    import torch

    from imgcls_search.training.device import available_devices, hardware, settle_in

    devices: Sequence[str] = available_devices("auto")
    is_cuda = devices[0].startswith("cuda")
    free = sum(float(torch.cuda.mem_get_info(device)[0]) for device in devices) if is_cuda else None
    pace = None
    if devices[0] == "cpu":
        settle_in("cpu")
        pace = pace_of_core()
    connection.send((devices, hardware(devices[0]), free, pace))


@dataclass(frozen=True)
class Pace:
    """How fast a core computes."""

    rates: tuple[float, float]
    """Multiply-accumulates per second of processor time, for plain and for depthwise convolutions."""

    waits: float
    """Wall-clock seconds per second of processor time, at least 1."""


PACE_SECONDS = 0.3
"""Processor time to measure each kind of convolution."""

PACE_IMAGES, PACE_SIDE, PACE_WIDTH, PACE_GROWTH = 8, 28, 24, 6
"""The measured blocks are like those in the middle of a small network for photographs."""


def pace_of_core() -> Pace:
    """Measure how fast this process computes blocks of a ResNet and of an EfficientNet, and how long it waits."""
    import torch
    from torch import nn

    wide = PACE_WIDTH * PACE_GROWTH
    places = PACE_IMAGES * PACE_SIDE**2
    plain = nn.Sequential(nn.Conv2d(PACE_WIDTH, PACE_WIDTH, 3, padding=1), nn.BatchNorm2d(PACE_WIDTH), nn.ReLU())
    light = nn.Sequential(
        *(nn.Conv2d(PACE_WIDTH, wide, 1), nn.BatchNorm2d(wide), nn.ReLU6()),
        *(nn.Conv2d(wide, wide, 3, padding=1, groups=wide), nn.BatchNorm2d(wide), nn.ReLU6()),
        *(nn.Conv2d(wide, PACE_WIDTH, 1), nn.BatchNorm2d(PACE_WIDTH)),
    )
    macs = (9 * PACE_WIDTH**2 * places, (2 * PACE_WIDTH + 9) * wide * places)
    pixels = torch.rand(PACE_IMAGES, PACE_WIDTH, PACE_SIDE, PACE_SIDE)
    began = time.perf_counter(), time.thread_time()
    with torch.inference_mode():
        plain_seconds, light_seconds = (_seconds_of(block.eval(), pixels) for block in (plain, light))
    waits = (time.perf_counter() - began[0]) / max(1e-6, time.thread_time() - began[1])
    return Pace(rates=(macs[0] / plain_seconds, macs[1] / light_seconds), waits=max(1.0, waits))


def _seconds_of(block: Callable[[Tensor], Tensor], pixels: Tensor) -> float:
    """Return the processor seconds of a block: the fastest of several runs after a warm-up."""
    block(pixels)
    found: list[float] = []
    while sum(found) < PACE_SECONDS:
        began = time.thread_time()
        block(pixels)
        # The resolution of the clock may be coarse.
        found.append(max(1e-6, time.thread_time() - began))
    return min(found)


def _slowdown(workers: int, waits: float) -> float:
    """Return how many times as long workers take because of other processes in the last minute.

    The number of other processes is the load average without this process. If the system does not share its cores
    evenly, a process waits less than that number suggests, so `waits` limits it.
    """
    cores = os.cpu_count() or 1
    with contextlib.suppress(OSError, AttributeError):
        others = min(max(0.0, os.getloadavg()[0] - 1), (waits - 1) * cores)
        return max(1.0, (others + workers) / max(workers, cores))
    # Not every system has a load average.
    return 1.0


def free_memory() -> float:
    """Return the bytes that this process and its children can still allocate."""
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
    """Return the path or its nearest parent that is an existing folder."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
