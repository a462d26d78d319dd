"""The layers of the cifar10-airbench network that torch lacks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

SMALLEST_VARIANCE = 5e-4
"""Added to each direction's variance, so that directions without variance are not amplified."""


class Whitening(nn.Module):
    """A convolution whose filters are the principal directions of image patches, scaled by their deviation, with both
    signs.

    For the patches it was fitted to, the outputs of its first half are uncorrelated with a mean square of 1 (Jordan
    2024, section 3.2). The filters are not trained.
    """

    weight: Tensor
    fitted: Tensor

    def __init__(self, channels: int, outputs: int, side: int) -> None:
        """`outputs` is twice the number of values in a patch."""
        super().__init__()
        # A buffer, so that no optimizer, weight decay or pruning changes it.
        self.register_buffer("weight", nn.Conv2d(channels, outputs, side, bias=False).weight.detach().clone())
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Compute the filters from normalised images [N, C, H, W], batch by batch."""
        size = self.weight[0].numel()
        # In double precision on the CPU, so that all devices of a training get the same result.
        squares, count = torch.zeros(size, size, dtype=torch.float64), 0
        for images in batches:
            patches = functional.unfold(images.cpu(), self.weight.shape[-1]).transpose(1, 2).flatten(0, 1).double()
            squares += patches.T @ patches
            count += len(patches)
        variances, directions = torch.linalg.eigh(squares / count)
        # Fix the sign, which otherwise depends on the library.
        largest = directions.abs().argmax(dim=0, keepdim=True)
        directions = directions * directions.gather(0, largest).sign()
        filters = (directions / (variances.clamp(min=0) + SMALLEST_VARIANCE).sqrt()).T.flip(0)
        self.weight.copy_(torch.cat([filters, -filters]).view_as(self.weight))
        self.fitted.fill_(True)

    def forward(self, images: Tensor) -> Tensor:
        """Return [N, outputs, H - side + 1, W - side + 1]."""
        return functional.conv2d(images, self.weight)


class Scale(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, features: Tensor) -> Tensor:
        """Return features times the factor."""
        return features * self.factor


class GlobalMaxPool(nn.Module):
    """Takes the largest value of each channel."""

    def forward(self, images: Tensor) -> Tensor:
        """Return [N, C] of [N, C, H, W]."""
        return images.amax(dim=(2, 3))


def identity_convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a 3x3 convolution whose first filters each pass on one channel."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(convolution.weight[:inputs])
    return convolution


def whitenings_of(model: nn.Module) -> list[Whitening]:
    """Return the whitening layers of a model that are not fitted yet."""
    layers = [layer for layer in model.modules() if isinstance(layer, Whitening)]
    return [layer for layer in layers if not layer.fitted]
