"""Small and large stems: the choice between them, and mobile networks without their early strides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from imgcls_search.errors import BuildError
from imgcls_search.image_size import ImageSize, shorter, shown
from imgcls_search.signature import Arg

if TYPE_CHECKING:
    from torch import nn

Stem = Literal["auto", "small", "large"]

MobileStem = Annotated[
    Stem,
    Arg(
        "large: five strides of 2, 32 times smaller; small: without the first two, 8 times smaller; "
        "auto: small up to 64 pixels"
    ),
]

PoolingStem = Annotated[
    Stem,
    Arg(
        "small: 3x3; large: 7x7 stride 2 and a max pool, four times smaller; "
        "auto: small up to 64 pixels, but large with weights: imagenet"
    ),
]
"""For ResNet and DenseNet."""

MOBILE_SHRINK = {"small": 8, "large": 32}
"""Downsampling factor of a mobile network: a small stem keeps three of its five strides of 2."""


def choose_stem(stem: Stem, image_size: ImageSize, weights: str | None) -> Literal["small", "large"]:
    """Resolve `auto`: small up to 64 pixels; large above, and for weights trained with it.

    For oblong images the shorter side counts, because strides use it up first.
    """
    if stem != "auto":
        return stem
    return "small" if shorter(image_size) <= 64 and weights != "imagenet" else "large"


def check_mobile_size(image_size: ImageSize, stem: str) -> None:
    """Refuse an image that the strides would shrink below one pixel; padding would still yield one, of zeros.

    Raises:
        BuildError: the image is smaller than the stem allows.
    """
    least = MOBILE_SHRINK[stem]
    if shorter(image_size) < least:
        sizes = ", ".join(f"{name} {size}" for name, size in MOBILE_SHRINK.items())
        raise BuildError(
            "stem",
            f"{stem!r} needs images of at least {least} pixels, got {shown(image_size)}; smallest sizes: {sizes}",
        )


def mobile_strides(strides: Sequence[int], stem: str) -> list[int]:
    """Return the strides of the blocks after the stem: a small stem also drops the first stride of 2."""
    left_out = strides.index(2) if stem == "small" else None
    return [1 if index == left_out else stride for index, stride in enumerate(strides)]


def fit_mobile_stem(model: Any, channels: int, stem: str) -> nn.Module:
    """Adapt the stem of a torchvision mobile network, which has three channels and stride 2, to these images."""
    from torch import nn

    if channels != 3 or stem == "small":
        convolution = nn.Conv2d(
            channels,
            model.features[0][0].out_channels,
            kernel_size=3,
            stride=1 if stem == "small" else 2,
            padding=1,
            bias=False,
        )
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
        model.features[0][0] = convolution
    fitted: nn.Module = model
    return fitted
