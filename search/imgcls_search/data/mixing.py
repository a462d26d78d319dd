"""Mix images of a batch with each other, and their labels too."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from imgcls_search.signature import Arg

if TYPE_CHECKING:
    from torch import Tensor

Mix = Callable[["Tensor", "Tensor"], "tuple[Tensor, Tensor]"]
"""Float images [N, C, H, W] and class numbers [N] -> images, and class numbers or shares [N, classes].

Several labels per image, 0 or 1 [N, classes], become shares: a label that both images have stays 1.
"""


def mix_nothing(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return both unchanged."""
    return images, labels


def mixing(
    *,
    classes: int,
    mixup: Annotated[
        float, Arg("blend pairs of images by a share from Beta(mixup, mixup); 0: off", ge=0, search="{float: [0, 0.4]}")
    ] = 0.0,
    cutmix: Annotated[
        float,
        Arg(
            "paste a window of another image, a share from Beta(cutmix, cutmix); 0: off", ge=0, search="{float: [0, 1]}"
        ),
    ] = 0.0,
) -> Mix:
    """Build mixup (Zhang et al. 2017) or CutMix (Yun et al. 2019); with both, a coin decides for each batch."""
    if not mixup and not cutmix:
        return mix_nothing

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        import torch
        from torch.nn import functional

        is_cut = torch.rand(()).item() < 0.5 if mixup and cutmix else bool(cutmix)
        # The neighbour in the batch is a random image, because every epoch is in random order.
        if is_cut:
            images, share = _paste(images, images.roll(1, 0), _draw_share(cutmix))
        else:
            share = _draw_share(mixup)
            images = images.roll(1, 0).mul_(1 - share).add_(images, alpha=share)
        shares = labels.float() if labels.ndim == 2 else functional.one_hot(labels, classes).float()
        return images, shares.roll(1, 0).mul_(1 - share).add_(shares, alpha=share)

    return mix


def _draw_share(alpha: float) -> float:
    """Draw the share of itself that an image keeps."""
    import torch

    return float(torch.distributions.Beta(torch.tensor([alpha]), torch.tensor([alpha])).sample())


def _paste(images: Tensor, others: Tensor, share: float) -> tuple[Tensor, float]:
    """Return images with a window pasted from others, and the share of their own pixels that is left."""
    import torch

    height, width = images.shape[-2:]
    middle_x, middle_y = int(torch.randint(width, ())), int(torch.randint(height, ()))
    reach = 0.5 * math.sqrt(1 - share)
    left, right = max(middle_x - int(reach * width), 0), min(middle_x + int(reach * width), width)
    top, bottom = max(middle_y - int(reach * height), 0), min(middle_y + int(reach * height), height)
    images = images.clone()
    images[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    # A window over the edge covers less than was drawn.
    return images, 1 - (right - left) * (bottom - top) / (height * width)
