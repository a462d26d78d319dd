"""The image size in each epoch: full, or small at first; evaluation is always at full size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from imgcls_search.config import TrialConfig
from imgcls_search.image_size import ImageSize, normal, shorter, sides
from imgcls_search.signature import Arg, build

if TYPE_CHECKING:
    from torch import Tensor

    from imgcls_search.data import Moment

FEWEST_STEPS = 8
"""A side grows in steps of at most 1 / `FEWEST_STEPS` of its length,"""

LARGEST_STEP = 32
"""and of at most this many pixels, the factor by which most networks reduce an image."""


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """The share of an image's sides used in training: `start` in the first epoch, full size from `until` on."""

    start: float = 1.0
    until: float = 0.0

    def share(self, epoch: int, epochs: int) -> float:
        """Return the share of the sides in an epoch, counted from 0, of a training of `epochs` epochs.

        It depends on nothing else, so resumed or promoted trials see the same sizes as uninterrupted ones. It grows
        linearly, and is 1 in the last epoch.
        """
        grows = self.until * epochs
        return 1.0 if epoch >= min(grows, epochs - 1) else self.start + (1 - self.start) * epoch / grows

    def size(self, full: ImageSize, epoch: int, epochs: int) -> ImageSize:
        """Return the image size in an epoch; its sides are multiples of a power of two."""
        share = self.share(epoch, epochs)
        if share == 1:
            return full
        step = min(LARGEST_STEP, 2 ** int(math.log2(max(shorter(full) // FEWEST_STEPS, 1))))
        height, width = (min(side, max(step, round(side * share / step) * step)) for side in sides(full))
        return normal((height, width))

    def work(self, epoch: int, epochs: int) -> float:
        """Return the approximate cost of an epoch relative to full size, proportional to the pixels."""
        return self.share(epoch, epochs) ** 2

    def sizes(self, full: ImageSize, epochs: int) -> tuple[ImageSize, ...]:
        """Return the distinct sizes of all epochs, in order."""
        return tuple(dict.fromkeys(self.size(full, epoch, epochs) for epoch in range(epochs)))


def full() -> Resolution:
    """Train on images of their full size in every epoch."""
    return Resolution()


def progressive(
    *,
    start: Annotated[
        float, Arg("side in the first epoch / full side", gt=0, lt=1, search="{choice: [0.5, 0.75]}")
    ] = 0.5,
    until: Annotated[
        float, Arg("share of the epochs in which the sides grow to full size", gt=0, lt=1, search="{float: [0.5, 0.9]}")
    ] = 0.7,
) -> Resolution:
    """Train on small images first, which take less time; validation, test and bundle are at full size."""
    return Resolution(start=start, until=until)


RESOLUTIONS: Mapping[str, Callable[..., Resolution]] = {"full": full, "progressive": progressive}
"""Builders of the image sizes of a training."""


def resolution_of(config: TrialConfig) -> Resolution:
    """Return the image sizes of a configuration; configurations of earlier versions have full size."""
    if "resolution" not in config.tree.get("training", {}):
        return Resolution()
    found: Resolution = build(RESOLUTIONS, config.component("training.resolution"))
    return found


@dataclass(frozen=True, kw_only=True)
class Shrinking:
    """Augments images, then shrinks them to the size of their epoch."""

    augment: Callable[..., Tensor]
    resolution: Resolution
    full: ImageSize
    epochs: int

    def __call__(self, images: Tensor, moment: Moment | None = None) -> Tensor:
        """Return augmented images; shrunk ones are floats, 0 to 255."""
        from torch.nn import functional

        augmented = self.augment(images, moment)
        assert moment is not None, "the size goes by the epoch"
        wanted = sides(self.resolution.size(self.full, moment.epoch, self.epochs))
        if tuple(augmented.shape[-2:]) == wanted:
            return augmented
        # Antialiasing averages over the area of a pixel, as decoding does, so that details do not become noise.
        return functional.interpolate(augmented.float(), wanted, mode="bilinear", antialias=True)
