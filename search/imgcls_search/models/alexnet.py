"""AlexNet."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Annotated, Any

from imgcls_search.errors import BuildError
from imgcls_search.image_size import ImageSize, shorter, shown
from imgcls_search.models.anatomy import Weights, find_twin, with_anatomy
from imgcls_search.models.stems import Stem, choose_stem
from imgcls_search.signature import Arg

if TYPE_CHECKING:
    from torch import nn

TWINS: dict[str, dict[str, Any]] = {"alexnet": {"width": 1.0, "hidden": 4096, "stem": "large"}}
"""torchvision's models with these arguments."""

SMALLEST = {"small": 8, "large": 63}
"""Smallest image sides in pixels: 8 become 4, 2 and 1 after the poolings; 63 become 15 before them, then 7, 3 and 1."""


def alexnet(
    *,
    image_size: ImageSize,
    channels: int,
    classes: int,
    width: Annotated[float, Arg("factor on every layer's channels", gt=0, search="{choice: [0.25, 0.5, 1]}")] = 1.0,
    hidden: Annotated[
        int | None,
        Arg(
            "features of each of the two hidden linear layers, 4096 in the paper; "
            "null: 4096 times the width with the large stem, 512 times with the small",
            ge=1,
        ),
    ] = None,
    dropout: Annotated[
        float, Arg("dropout before each hidden linear layer", ge=0, lt=1, search="{float: [0, 0.5]}")
    ] = 0.5,
    stem: Annotated[
        Stem,
        Arg(
            "large: 11x11 stride 4, three 3x3 poolings and 6x6 pixels before the linear layers; small: 3x3, three 2x2 "
            "poolings and the mean over all pixels; auto: small up to 64 pixels, but large with weights: imagenet"
        ),
    ] = "auto",
    weights: Weights = None,
) -> nn.Module:
    """Build AlexNet (Krizhevsky 2014, the one-column version) with torchvision's layers and their names.

    With `stem: large` it is torchvision's. Takes [N, channels, height, width], gives logits [N, classes].

    Raises:
        BuildError: the image is too small for the strides, or no pretrained weights for these arguments.
    """
    stem = choose_stem(stem, image_size, weights)
    if hidden is None:
        hidden = max(1, round(width * (4096 if stem == "large" else 512)))
    twin = find_twin(TWINS, weights, channels, {"width": width, "hidden": hidden, "stem": stem})
    least = SMALLEST[stem]
    if shorter(image_size) < least:
        sizes = ", ".join(f"{name} {size}" for name, size in SMALLEST.items())
        raise BuildError(
            "stem",
            f"{stem!r} needs images of at least {least} pixels, got {shown(image_size)}; smallest sizes: {sizes}",
        )
    from torch import nn

    conv1, conv2, conv3, conv4, conv5 = (max(1, round(n * width)) for n in (64, 192, 384, 256, 256))
    if stem == "large":
        first, pool, side = nn.Conv2d(channels, conv1, 11, 4, padding=2), 3, 6
    else:
        first, pool, side = nn.Conv2d(channels, conv1, 3, padding=1), 2, 1
    # torchvision's class has constant widths, 58 million parameters that would be thrown away. Its layer names are
    # kept, so that its weights fit.
    model = nn.Sequential(
        OrderedDict(
            features=nn.Sequential(
                first,
                nn.ReLU(inplace=True),
                nn.MaxPool2d(pool, stride=2),
                nn.Conv2d(conv1, conv2, 5, padding=2),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(pool, stride=2),
                nn.Conv2d(conv2, conv3, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.Conv2d(conv3, conv4, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.Conv2d(conv4, conv5, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(pool, stride=2),
            ),
            avgpool=nn.AdaptiveAvgPool2d(side),
            flatten=nn.Flatten(),
            classifier=nn.Sequential(
                nn.Dropout(dropout),
                nn.Linear(conv5 * side * side, hidden),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Linear(hidden, hidden),
                nn.ReLU(inplace=True),
                nn.Linear(hidden, classes),
            ),
        )
    )
    if stem == "small":
        _initialise(model)
    stages = [(f"features.{index}",) for index in (0, 3, 6, 8, 10)]
    return with_anatomy(model, head="classifier.6", stages=[*stages, ("classifier.1", "classifier.4")], twin=twin)


def _initialise(model: nn.Module) -> None:
    # torchvision uses torch's default initialisation for AlexNet, with which signals fade from layer to layer; without
    # the large stem's thousands of features and long training this costs the first epochs. He et al. 2015 preserves
    # them.
    from torch import nn

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
