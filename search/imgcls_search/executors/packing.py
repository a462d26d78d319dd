"""Check whether several workers fit on one GPU: compare its free memory with the estimated needs of trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection

from imgcls_search.errors import DeviceError
from imgcls_search.executors import processes

PROCESS_BYTES = 0.6e9
"""Estimated memory of a process on a GPU before its first tensor: CUDA's context and the kernels of torch."""


def free_memory(slots: Sequence[str]) -> dict[str, float]:
    """Return the free memory, bytes, of each GPU that several workers share."""
    shared = [device for device, count in Counter(slots).items() if count > 1 and device.startswith("cuda")]
    if not shared:
        return {}
    # In its own process: a process that uses CUDA holds some of that memory until it ends.
    process, connection = processes.start(_free_memory, "gpu-memory", shared)
    try:
        found: dict[str, float] = connection.recv()
    except (EOFError, OSError) as error:
        raise DeviceError(f"training.device: the memory of {', '.join(shared)} cannot be read") from error
    finally:
        connection.close()
        process.join()
    return found


def _free_memory(connection: Connection, devices: Sequence[str]) -> None:
    import torch

    connection.send({device: float(torch.cuda.mem_get_info(device)[0]) for device in devices})


def advise(slots: Sequence[str], free: Mapping[str, float], needs: Sequence[float]) -> list[str]:
    """Return a line on each shared GPU: memory per worker, needs of trials, and how many workers would fit them all.

    `needs` are estimated peaks of training, bytes, of configurations drawn from the space.

    Raises:
        DeviceError: not even the smallest of them fits.
    """
    lines = []
    for device, bytes_free in free.items():
        count = Counter(slots)[device]
        each = bytes_free / count - PROCESS_BYTES
        told = (
            f"{device}: {count} workers share {bytes_free / 1e9:.1f} GB, {max(each, 0) / 1e9:.1f} GB each; trials "
            f"need an estimated {min(needs) / 1e9:.2g} to {max(needs) / 1e9:.2g} GB ({len(needs)} drawn)"
        )
        if min(needs) > each:
            raise DeviceError(f"study.workers: {told}; allowed: {_most_workers(bytes_free, min(needs))}")
        too_large = sum(need > each for need in needs)
        if too_large:
            told += (
                f"; {too_large} of them may not fit, --workers {_most_workers(bytes_free, max(needs))} holds them all"
            )
        lines.append(told)
    return lines


def _most_workers(bytes_free: float, need: float) -> int:
    return max(1, int(bytes_free // (need + PROCESS_BYTES)))
