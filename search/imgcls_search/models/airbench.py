"""The network of cifar10-airbench, for any image size."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Annotated, Literal

from imgcls_search.errors import BuildError
from imgcls_search.image_size import ImageSize, shorter, shown
from imgcls_search.models.anatomy import Weights, refuse_imagenet, with_anatomy
from imgcls_search.signature import Arg

if TYPE_CHECKING:
    from torch import nn

PATCH = 2
"""Side of the first layer's patches, pixels."""

FORGOTTEN = 0.4
"""Weight of the newest batch in running statistics: large, so that few steps are enough."""


def airbench(
    *,
    image_size: ImageSize,
    channels: int,
    classes: int,
    widths: Annotated[
        tuple[int, ...],
        Arg(
            "channels of each block, which halves the image; early blocks of a small image do not",
            ge=1,
            search="{choice: [[16, 64, 64], [32, 128, 128], [64, 256, 256]]}",
        ),
    ] = (64, 256, 256),
    first: Annotated[
        Literal["whitened", "learned"],
        Arg(
            "first layer, 2x2 patches: whitened, fixed filters that make the patches of the training images "
            "uncorrelated; or learned like the others",
            search="{choice: [whitened, learned]}",
        ),
    ] = "whitened",
    scale: Annotated[
        float, Arg("factor on the features before the head; small ones keep the first logits small", gt=0)
    ] = 1 / 9,
    weights: Weights = None,
) -> nn.Module:
    """Build the network of cifar10-airbench (Jordan 2024): a whitened first layer, then blocks of two convolutions.

    Convolutions start as the identity as far as their channels go. Unlike the original, the first layer has no bias,
    normalisation learns its scale too, and the mean over all pixels is a maximum of any size. At 32 pixels the default
    has 1.97 million parameters. Takes [N, channels, height, width], gives logits [N, classes].

    Raises:
        BuildError: the image is smaller than a patch, or `weights` is `imagenet`, of which there are none.
    """
    if shorter(image_size) < PATCH:
        raise BuildError("", f"needs images of at least {PATCH} pixels, got {shown(image_size)}")
    refuse_imagenet(weights)
    from torch import nn

    from imgcls_search.models.airbench_layers import GlobalMaxPool, Scale, Whitening, identity_convolution

    inputs = 2 * channels * PATCH**2
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        first=Whitening(channels, inputs, PATCH)
        if first == "whitened"
        else nn.Conv2d(channels, inputs, PATCH, bias=False),
        activation=nn.GELU(),
    )
    # With a small image, only the last blocks halve it, as often as its size allows.
    halvings = min(len(widths), (shorter(image_size) - PATCH + 1).bit_length() - 1)
    for place, width in enumerate(widths):
        halving = [nn.MaxPool2d(2)] if place >= len(widths) - halvings else []
        layers[f"block{place + 1}"] = nn.Sequential(
            identity_convolution(inputs, width),
            *halving,
            nn.BatchNorm2d(width, momentum=FORGOTTEN),
            nn.GELU(),
            identity_convolution(width, width),
            nn.BatchNorm2d(width, momentum=FORGOTTEN),
            nn.GELU(),
        )
        inputs = width
    layers |= {"largest": GlobalMaxPool(), "scale": Scale(scale), "head": nn.Linear(inputs, classes, bias=False)}
    blocks = [(f"block{place + 1}",) for place in range(len(widths))]
    stages = blocks if first == "whitened" else [("first",), *blocks]
    return with_anatomy(nn.Sequential(layers), head="head", stages=stages, twin=None)
