"""Image sets for training: on the device or mapped from disk, normalised batch by batch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

EVALUATION_BATCH = 512
"""Images per step without gradients; large images use smaller steps, see below."""

CPU_PIXELS, GPU_PIXELS = 2**20, 2**23
"""Pixels (height x width) per step on a CPU and on other devices. On one Xeon core EfficientNet-Lite0 predicts 265
images of 192x256 pixels 1.4 times as fast in steps of 21 as in one step, with 0.6 GB instead of 4, and no other step
size is faster; a GPU needs larger steps to be busy."""


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images of a training, on its device or mapped from disk, normalised batch by batch."""

    pixels: np.ndarray[Any, Any] | Tensor
    """uint8 [N, C, H, W]."""

    labels: np.ndarray[Any, Any] | Tensor
    """Class numbers, int64 [N]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def home(self) -> str:
        """The device of the images, and so of the indices into them."""
        return self.device if isinstance(self.pixels, Tensor) else "cpu"

    def shuffled(self) -> Tensor:
        """Return the indices of all images in random order."""
        return torch.randperm(len(self)).to(self.home)

    def balanced(self) -> Tensor:
        """Return as many indices as there are images, equally many of every class, in random order.

        All images of a class appear before any repeats; which classes get one image more is random.
        """
        count = len(self)
        present = [members for members in self._by_class if len(members)]
        shares = torch.full((len(present),), count // len(present))
        shares[torch.randperm(len(present))[: count % len(present)]] += 1
        drawn = torch.cat([_rounds(members, share) for members, share in zip(present, shares.tolist(), strict=True)])
        return drawn[torch.randperm(count)].to(self.home)

    @cached_property
    def _by_class(self) -> list[Tensor]:
        """The indices of the images of each class."""
        labels = self.labels.cpu() if isinstance(self.labels, Tensor) else torch.from_numpy(np.array(self.labels))
        order = labels.argsort(stable=True)
        return list(torch.split(order, torch.bincount(labels).tolist()))

    def batches(self, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield for each part of the images their indices [B], pixels, uint8 [B, C, H, W], and class numbers [B]."""
        if isinstance(self.pixels, Tensor):
            yield from ((index, self.pixels[index], self.labels[index]) for index in parts)
        elif self.device == "cpu":
            yield from ((index, *self._read(index)) for index in parts)
        else:
            # Read or decode the next two batches while the device computes.
            with ThreadPoolExecutor(1) as reader:
                ahead = deque(reader.submit(self._read, index) for index in parts[:2])
                for number, index in enumerate(parts):
                    pixels, labels = ahead.popleft().result()
                    ahead.extend(reader.submit(self._read, later) for later in parts[number + 2 : number + 3])
                    yield index, self._send(pixels), self._send(labels)

    def _read(self, index: Tensor) -> tuple[Tensor, Tensor]:
        # Indexing copies from the mapped file, so that no process holds the whole set.
        pixels = torch.from_numpy(self.pixels[index.numpy()])
        labels = torch.from_numpy(np.asarray(self.labels)[index.numpy()])
        # Only copies from pinned memory run in parallel to the host.
        return (pixels.pin_memory(), labels.pin_memory()) if self._is_cuda else (pixels, labels)

    def _send(self, values: Tensor) -> Tensor:
        return values.to(self.device, non_blocking=self._is_cuda)

    @property
    def _is_cuda(self) -> bool:
        return self.device.startswith("cuda")

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return float [B, C, H, W], scaled so that the training split has mean 0 and deviation 1 per channel."""
        scale, shift = self._scale_and_shift
        return pixels.float().mul_(scale).add_(shift)

    @cached_property
    def _scale_and_shift(self) -> tuple[Tensor, Tensor]:
        # Cached: a copy to a GPU in each step would delay the host.
        mean, std = (torch.tensor(values, device=self.device).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return 1 / (255 * std), -mean / std


@dataclass(frozen=True, kw_only=True)
class FeatureSet(ImageSet):
    """Features of a frozen network in place of pixels: float32 [N, D]."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return the features unchanged."""
        return pixels.float()


def _rounds(members: Tensor, count: int) -> Tensor:
    """Return `count` of the members in random order; none repeats before all others have appeared."""
    rounds = [members[torch.randperm(len(members))] for _ in range(math.ceil(count / len(members)))]
    return torch.cat([members[:0], *rounds])[:count]


def in_order(images: ImageSet, most: int | None = None, batch: int = EVALUATION_BATCH) -> Sequence[Tensor]:
    """Return the indices of all images, or of the first `most`, in parts of at most `batch` that fit into memory."""
    count = len(images) if most is None else min(most, len(images))
    return torch.split(torch.arange(count, device=images.home), step_of(images, batch))


def step_of(images: ImageSet, most: int) -> int:
    """Return how many images to process at a time without gradients, at most `most`."""
    if isinstance(images, FeatureSet):
        return most
    places = math.prod(images.pixels.shape[2:])
    return max(1, min(most, (CPU_PIXELS if images.device == "cpu" else GPU_PIXELS) // places))
