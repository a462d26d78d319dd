"""The device and the precision of a training."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, TypeVar

import torch
from torch import nn

from imgcls_search.errors import DeviceError
from imgcls_search.processor import processor_name

Network = TypeVar("Network", bound=nn.Module)


def available_devices(wanted: str) -> list[str]:
    """Return the devices that trials may use: every CUDA device, or `mps`, or `cpu`.

    Raises:
        DeviceError: the wanted kind is not on this machine.
    """
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    kinds = {"cuda": cuda, "mps": mps, "cpu": ["cpu"]}
    found = next(devices for devices in kinds.values() if devices) if wanted == "auto" else kinds[wanted]
    if not found:
        allowed = ", ".join(kind for kind, devices in kinds.items() if devices)
        raise DeviceError(f"training.device: {wanted} is not on this machine; allowed here: auto, {allowed}")
    return found


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""Codes of glibc's mallopt options (malloc.h)."""

_LARGEST = (2**30, 2**25)
"""Block sizes in bytes up to which freed memory is kept; the second is the maximum of older glibc versions."""


def settle_in(device: str) -> None:
    """Prepare a process for training: on a CPU, use one thread and keep freed memory for the next step."""
    if device == "cpu":
        torch.set_num_threads(1)
        keep_freed_memory()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread inside the context.

    Beside other processes, several threads that wait for each other and for a core are slower than one.
    """
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


@cache
def keep_freed_memory() -> None:
    """Keep memory that this process frees for its later allocations.

    Otherwise large blocks go back to the system and return page by page: on two cores of an EPYC a training step of a
    ResNet-8 takes 1.1 times, of a small ViT 1.2 times and of a LeNet-5 1.3 times as long, and a prediction of
    EfficientNet-Lite0 for 32 images of 192x256 pixels 2.7 times.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    # Without glibc, change nothing: only speed depends on it.
    if set_option is not None and any(set_option(_MMAP_THRESHOLD, size) for size in _LARGEST):
        set_option(_TRIM_THRESHOLD, 2**31 - 1)


def give_back_memory() -> None:
    """Return unused memory of this process to the system, between two trials."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)


def hardware(device: str) -> str:
    """Return the name of the GPU or processor, which affects the last digits of a training's numbers."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return processor_name()


def resolve_precision(precision: str, device: str) -> str:
    """Return `fp32`, `bf16` or `fp16` for a device.

    Raises:
        DeviceError: fp16 without CUDA; only there does gradient scaling protect small gradients.
    """
    on_cuda = device.startswith("cuda")
    if precision == "auto":
        if not on_cuda:
            return "fp32"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if precision == "fp16" and not on_cuda:
        raise DeviceError(f"training.precision: fp16 needs a CUDA device, got {device}; allowed here: auto, fp32, bf16")
    return precision


REDUCE_OVERHEAD = "reduce_overhead"
"""The value of `training.compile` that saves small networks on a GPU the launch overhead of operations."""

COMPILE_STEPS = 10_000
"""Steps of a trial from which compiling (up to a minute) should pay off on a GPU; an estimate, not measured."""


def pays_to_compile(wanted: str | bool, device: str, steps: int) -> bool:
    """Tell whether a model should be compiled for a trial of `steps` steps.

    On two CPU cores compiling a small network took 10 to 57 seconds and made it 1.65 times faster, which short trials
    rarely earn back.
    """
    if wanted == "auto":
        return device.startswith("cuda") and steps >= COMPILE_STEPS
    return bool(wanted)


def compiled(model: nn.Module, wanted: str | bool) -> Callable[..., Any]:
    """Return a compiled model; with `reduce_overhead`, a GPU replays its steps as CUDA graphs."""
    return torch.compile(model, mode="reduce-overhead" if wanted == REDUCE_OVERHEAD else None)


FEWEST_CHANNELS = 16
"""Fewest input channels at which a strided 1x1 convolution is safe with channels last."""


def fastest_layout(model: nn.Module) -> torch.memory_format:
    """Return the memory format in which a model computes fastest.

    Networks of convolutions are 1.1 to 1.9 times as fast with channels last (measured on a CPU at 8 and 32 pixels);
    transformers with one convolution at the front are not.
    """
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    is_safe = not any(_overruns_memory(convolution) for convolution in convolutions)
    return torch.channels_last if len(convolutions) > 1 and is_safe else torch.contiguous_format


def move(model: Network, device: str) -> Network:
    """Move a model to a device, in its fastest memory format, and return it."""
    return model.to(device, memory_format=fastest_layout(model))  # type: ignore[call-overload, no-any-return]


def _overruns_memory(convolution: nn.Conv2d) -> bool:
    # With channels last, oneDNN's backward pass of such a convolution writes beyond its memory and eventually kills the
    # process (torch 2.14.1, AVX2: below 8 channels; doubled here for wider processors, not tested).
    return (
        convolution.kernel_size == (1, 1)
        and convolution.stride != (1, 1)
        and convolution.in_channels // convolution.groups < FEWEST_CHANNELS
    )


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    """Return a context in which a forward pass runs in the given precision."""
    if precision == "fp32":
        return nullcontext()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.split(":")[0], dtype=dtype)
