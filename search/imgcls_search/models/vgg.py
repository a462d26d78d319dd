"""VGG networks."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Annotated, Any, Literal

from imgcls_search.errors import BuildError
from imgcls_search.image_size import ImageSize, shorter, shown
from imgcls_search.models.anatomy import Weights, find_twin, with_anatomy
from imgcls_search.models.stems import Stem, choose_stem
from imgcls_search.signature import Arg

if TYPE_CHECKING:
    from torch import nn

TWINS: dict[str, dict[str, Any]] = {
    f"vgg{depth}{'_bn' if batch_norm else ''}": {
        "depth": depth,
        "batch_norm": batch_norm,
        "width": 64,
        "hidden": 4096,
        "stem": "large",
    }
    for depth in (11, 13, 16, 19)
    for batch_norm in (False, True)
}
"""torchvision's models with these arguments."""

CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions per stage for each depth: the paper's columns A, B, D and E."""


def vgg(
    *,
    image_size: ImageSize,
    channels: int,
    classes: int,
    depth: Annotated[
        Literal[11, 13, 16, 19], Arg("convolutions and linear layers together", search="{choice: [11, 13, 16]}")
    ] = 11,
    batch_norm: Annotated[bool, Arg("batch normalisation after each convolution; the paper has none")] = True,
    width: Annotated[
        int,
        Arg(
            "channels of the first stage, 64 in the paper; the others have 2, 4, 8 and 8 times as many",
            ge=1,
            search="{choice: [16, 32, 64]}",
        ),
    ] = 64,
    hidden: Annotated[
        int | None,
        Arg(
            "features of each of the two hidden linear layers, 4096 in the paper; "
            "null: 64 times the width with the large stem, 8 times with the small",
            ge=1,
        ),
    ] = None,
    dropout: Annotated[
        float, Arg("dropout after each hidden linear layer", ge=0, lt=1, search="{float: [0, 0.5]}")
    ] = 0.5,
    stem: Annotated[
        Stem,
        Arg(
            "large: five 2x2 poolings and 7x7 pixels before the linear layers; small: without the first of the "
            "poolings, as many as leave at least one pixel, and the mean over all pixels before the linear layers; "
            "auto: small up to 64 pixels, but large with weights: imagenet"
        ),
    ] = "auto",
    weights: Weights = None,
) -> nn.Module:
    """Build a VGG network (Simonyan and Zisserman 2014) with torchvision's layers and their names.

    `depth: 16, batch_norm: false, stem: large` is torchvision's VGG-16. Takes [N, channels, height, width],
    gives logits [N, classes].

    Raises:
        BuildError: the image is too small for five poolings, or no pretrained weights for these arguments.
    """
    stem = choose_stem(stem, image_size, weights)
    if hidden is None:
        hidden = width * (64 if stem == "large" else 8)
    given = {"depth": depth, "batch_norm": batch_norm, "width": width, "hidden": hidden, "stem": stem}
    twin = find_twin(TWINS, weights, channels, given)
    if stem == "large" and shorter(image_size) < 32:
        raise BuildError(
            "stem",
            f"'large' needs images of at least 32 pixels, got {shown(image_size)}; smallest sizes: small 1, large 32",
        )
    # Late pooling keeps the detail of a small image for the first convolutions.
    poolings = min(5, shorter(image_size).bit_length() - 1)
    side = 7 if stem == "large" else 1
    from torch import nn

    layers: list[nn.Module] = []
    stages: list[list[str]] = []
    inputs = channels
    for stage, (convolutions, factor) in enumerate(zip(CONVOLUTIONS[depth], (1, 2, 4, 8, 8), strict=True)):
        names = []
        for _ in range(convolutions):
            first = len(layers)
            layers.append(nn.Conv2d(inputs, width * factor, 3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(width * factor))
            names += [f"features.{index}" for index in range(first, len(layers))]
            layers.append(nn.ReLU(inplace=True))
            inputs = width * factor
        if stage >= 5 - poolings:
            layers.append(nn.MaxPool2d(2))
        stages.append(names)
    stages.append(["classifier.0", "classifier.3"])
    # torchvision's class always makes 7 x 7 x 512 inputs and 4096 hidden features, 120 million parameters that would be
    # thrown away. Its layer names are kept, so that its weights fit.
    model = nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*layers),
            avgpool=nn.AdaptiveAvgPool2d(side),
            flatten=nn.Flatten(),
            classifier=nn.Sequential(
                nn.Linear(inputs * side * side, hidden),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Linear(hidden, hidden),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Linear(hidden, classes),
            ),
        )
    )
    _initialise(model, stem)
    return with_anatomy(model, head="classifier.6", stages=stages, twin=twin)


def _initialise(model: nn.Module, stem: str) -> None:
    # As in torchvision. Its linear layers start with a deviation of 0.01, which suits thousands of features; with the
    # small stem's few hundred, signals would fade, and training would lose its first epochs.
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear) and stem == "small":
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)
