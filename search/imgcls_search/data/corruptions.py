"""Corrupted images, after Hendrycks and Dietterich 2019: five of their corruptions, on whole batches.

Results equal the authors' published code for single images. Noise is seeded by each image's number, so that an image is
corrupted the same way in any batch. Strengths are those of ImageNet-C, for smaller images those of Tiny-ImageNet-C and
of CIFAR-10-C: a blur for 224 pixels would leave nothing of a picture of 32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from imgcls_search.data import operations

SEVERITIES = (1, 3, 5)
"""The severities that are measured, of 1 to 5."""

SEED = 0

_IMAGENET, _TINY, _CIFAR = 224, 64, 32
"""The image sizes of the published strengths."""

CORRUPTIONS: Mapping[str, Mapping[int, Sequence[float]]] = {
    "gaussian_noise": {
        _IMAGENET: (0.08, 0.12, 0.18, 0.26, 0.38),
        _TINY: (0.04, 0.08, 0.12, 0.15, 0.18),
        _CIFAR: (0.04, 0.06, 0.08, 0.09, 0.10),
    },
    "gaussian_blur": {
        _IMAGENET: (1, 2, 3, 4, 6),
        _TINY: (0.5, 0.75, 1, 1.25, 1.5),
        _CIFAR: (0.4, 0.6, 0.7, 0.8, 1),
    },
    "jpeg_compression": {_IMAGENET: (25, 18, 15, 10, 7), _TINY: (65, 58, 50, 40, 25), _CIFAR: (80, 65, 58, 50, 40)},
    "brightness": {
        _IMAGENET: (0.1, 0.2, 0.3, 0.4, 0.5),
        _TINY: (0.1, 0.2, 0.3, 0.4, 0.5),
        _CIFAR: (0.05, 0.1, 0.15, 0.2, 0.3),
    },
    "contrast": {
        _IMAGENET: (0.4, 0.3, 0.2, 0.1, 0.05),
        _TINY: (0.4, 0.3, 0.2, 0.1, 0.05),
        _CIFAR: (0.75, 0.5, 0.4, 0.3, 0.15),
    },
}
"""Strengths at severities 1 to 5, by the image size that they were published for."""


def strength(name: str, severity: int, sides: Sequence[int]) -> float:
    """Return the strength of a corruption for images of a height and width: that of the next published size."""
    shorter = min(sides)
    published = _CIFAR if shorter < 48 else _TINY if shorter < 128 else _IMAGENET
    return CORRUPTIONS[name][published][severity - 1]


def corrupt(images: Tensor, name: str, severity: int, numbers: Tensor) -> Tensor:
    """Return corrupted images, uint8 [N, C, H, W]; `numbers` [N] seed the noise of each image."""
    value = strength(name, severity, images.shape[2:])
    match name:
        case "gaussian_noise":
            return _pixels(images.float() + 255 * value * _normal(images, numbers))
        case "gaussian_blur":
            return _pixels(_blur(images.float(), value))
        case "jpeg_compression":
            return operations.jpeg(images, torch.full((len(images),), int(value)))
        case "brightness":
            return _pixels(_brighten(images.float(), 255 * value))
        case _:
            means = images.float().mean(dim=(2, 3), keepdim=True)
            return _pixels((images.float() - means) * value + means)


def _normal(images: Tensor, numbers: Tensor) -> Tensor:
    """Return normal random numbers in the shape of the images, seeded by each image's number."""
    drawn = []
    for number in numbers.tolist():
        generator = torch.Generator().manual_seed(SEED * 1_000_003 + int(number))
        drawn.append(torch.randn(images.shape[1:], generator=generator))
    return operations.beside(torch.stack(drawn), images)


def _blur(values: Tensor, deviation: float) -> Tensor:
    """Blur as scikit-image does: weights end at four deviations, and edge pixels are repeated beyond the edges."""
    radius = int(4 * deviation + 0.5)
    places = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (places / deviation) ** 2)
    weights = operations.beside((weights / weights.sum()).float(), values)
    for axis, padding in ((-2, (0, 0, radius, radius)), (-1, (radius, radius, 0, 0))):
        side, around = values.shape[axis], functional.pad(values, padding, "replicate")
        values = torch.zeros_like(values)
        for step in range(2 * radius + 1):
            values += around.narrow(axis, step, side) * weights[step]
    return values


def _brighten(values: Tensor, step: float) -> Tensor:
    """Add to the value of the HSV colour model: all channels grow by one factor, so hue and saturation stay."""
    highest = values.amax(dim=1, keepdim=True)
    raised = (highest + step).clamp(max=255)
    # Black has no hue and becomes grey.
    return torch.where(highest > 0, values * (raised / highest.clamp(min=1)), raised)


def _pixels(values: Tensor) -> Tensor:
    """Return floats as pixels, rounded down like the authors' code, with a tolerance for float errors."""
    return (values.clamp(0, 255) + 1e-3).floor().clamp(max=255).to(torch.uint8)
