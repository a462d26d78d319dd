"""The search space of augmentation policies: torchvision's operations and strengths, for whole batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from imgcls_search.data import draws, operations

BINS = 31
"""Number of strength levels, 0 to 30."""

SHIFTS: Mapping[str, Callable[[Tensor, int, int], Tensor]] = {
    "shear_x": operations.shear_x,
    "shear_y": operations.shear_y,
    "translate_x": operations.translate_x,
    "translate_y": operations.translate_y,
    "rotate": operations.rotate,
}
"""Strengths, height and width -> matrices."""

CHANGES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": lambda images, strength: operations.brightness(images, 1 + strength),
    "color": lambda images, strength: operations.saturation(images, 1 + strength),
    "contrast": lambda images, strength: operations.contrast(images, 1 + strength),
    "sharpness": lambda images, strength: operations.sharpness(images, 1 + strength),
    "posterize": operations.posterize,
    "solarize": operations.solarize,
    "autocontrast": lambda images, _: operations.autocontrast(images),
    "equalize": lambda images, _: operations.equalize(images),
}
"""Images and strengths -> images."""

OPERATIONS = ("identity", *SHIFTS, *CHANGES)
"""In torchvision's order; the index is the operation's number."""

FIRST_SHIFT, FIRST_CHANGE, FIRST_UNSIGNED = (OPERATIONS.index(name) for name in ("shear_x", "brightness", "posterize"))


def rand_strengths(height: int, width: int) -> Tensor:
    """Return RandAugment's strengths [operations, BINS] for images of a size."""
    return _strengths(
        shear=0.3, shift_x=150.0 / 331.0 * width, shift_y=150.0 / 331.0 * height, turn=30.0, factor=0.9, bits=4
    )


def trivial_strengths() -> Tensor:
    """Return the strengths [operations, BINS] of TrivialAugment's wide space, with shifts of up to 32 pixels."""
    return _strengths(shear=0.99, shift_x=32.0, shift_y=32.0, turn=135.0, factor=0.99, bits=6)


def draw_operations(count: int) -> Tensor:
    """Draw an operation number for every image."""
    return draws.of_images(count, lambda total: torch.randint(len(OPERATIONS), (total,)))


def draw_signs(operation: Tensor, strength: Tensor) -> Tensor:
    """Negate the strength for half of the images whose operation has two directions."""
    is_signed = (operation >= FIRST_SHIFT) & (operation < FIRST_UNSIGNED)
    return torch.where(is_signed & (draws.of_images(len(operation), torch.rand) <= 0.5), -strength, strength)


def apply(images: Tensor, operation: Tensor, strength: Tensor) -> Tensor:
    """Apply to every image the operation with its number, with strengths as in torchvision's policies.

    Numbers, int64 [N], and strengths, float64 [N], are on the CPU, so that no GPU synchronization is needed.
    """
    assert images.dtype == torch.uint8, f"policies are for pixels, not for {images.dtype}"
    result = images.clone(memory_format=torch.contiguous_format)
    shifted = (operation >= FIRST_SHIFT) & (operation < FIRST_CHANGE)
    if shifted.any():
        # All operations that move pixels share one grid.
        chosen = shifted.nonzero()[:, 0]
        on_device = operations.beside(chosen, images)
        matrices = _matrices(operation[chosen], strength[chosen], *images.shape[-2:])
        result[on_device] = operations.affine(images[on_device], matrices)
    for number, change in enumerate(CHANGES.values(), FIRST_CHANGE):
        chosen = (operation == number).nonzero()[:, 0]
        if len(chosen):
            on_device = operations.beside(chosen, images)
            result[on_device] = change(images[on_device], strength[chosen])
    return result


def _matrices(operation: Tensor, strength: Tensor, height: int, width: int) -> Tensor:
    # Compute every kind for all images (only a few numbers), then select each image's own.
    of_each = torch.stack([matrices(strength, height, width) for matrices in SHIFTS.values()])
    return of_each[operation - FIRST_SHIFT, torch.arange(len(operation))]


def _strengths(*, shear: float, shift_x: float, shift_y: float, turn: float, factor: float, bits: int) -> Tensor:
    highest = (0.0, shear, shear, shift_x, shift_y, turn, factor, factor, factor, factor)
    rising = [torch.linspace(0.0, high, BINS) for high in highest]
    kept_bits = (8 - torch.arange(BINS) / ((BINS - 1) / bits)).round()
    none = torch.zeros(BINS)
    return torch.stack([*rising, kept_bits, torch.linspace(1.0, 0.0, BINS), none, none]).double()
