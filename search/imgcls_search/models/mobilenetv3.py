"""MobileNets, the third version."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from imgcls_search.image_size import ImageSize
from imgcls_search.models.anatomy import Weights, find_twin, with_anatomy
from imgcls_search.models.stems import MobileStem, check_mobile_size, choose_stem, fit_mobile_stem, mobile_strides
from imgcls_search.signature import Arg

if TYPE_CHECKING:
    from torch import nn

BLOCKS = {
    "large": (
        (16, 3, 16, 16, False, "RE", 1),
        (16, 3, 64, 24, False, "RE", 2),
        (24, 3, 72, 24, False, "RE", 1),
        (24, 5, 72, 40, True, "RE", 2),
        (40, 5, 120, 40, True, "RE", 1),
        (40, 5, 120, 40, True, "RE", 1),
        (40, 3, 240, 80, False, "HS", 2),
        (80, 3, 200, 80, False, "HS", 1),
        (80, 3, 184, 80, False, "HS", 1),
        (80, 3, 184, 80, False, "HS", 1),
        (80, 3, 480, 112, True, "HS", 1),
        (112, 3, 672, 112, True, "HS", 1),
        (112, 5, 672, 160, True, "HS", 2),
        (160, 5, 960, 160, True, "HS", 1),
        (160, 5, 960, 160, True, "HS", 1),
    ),
    "small": (
        (16, 3, 16, 16, True, "RE", 2),
        (16, 3, 72, 24, False, "RE", 2),
        (24, 3, 88, 24, False, "RE", 1),
        (24, 5, 96, 40, True, "HS", 2),
        (40, 5, 240, 40, True, "HS", 1),
        (40, 5, 240, 40, True, "HS", 1),
        (40, 5, 120, 48, True, "HS", 1),
        (48, 5, 144, 48, True, "HS", 1),
        (48, 5, 288, 96, True, "HS", 2),
        (96, 5, 576, 96, True, "HS", 1),
        (96, 5, 576, 96, True, "HS", 1),
    ),
}
"""Tables 1 and 2 of the paper: channels in, kernel, channels between, channels out, squeeze and excitation,
activation (ReLU or hard swish), stride."""

LAST = {"large": 1280, "small": 1024}
"""Number of features before the head."""

TWINS: dict[str, dict[str, Any]] = {
    f"mobilenet_v3_{size}": {"size": size, "width_mult": 1.0, "squeeze_excite": True, "stem": "large"}
    for size in BLOCKS
}
"""torchvision's models with these arguments."""


def mobilenetv3(
    *,
    image_size: ImageSize,
    channels: int,
    classes: int,
    size: Annotated[Literal["small", "large"], Arg("which of the paper's two networks: 11 or 15 blocks")] = "small",
    width_mult: Annotated[
        float, Arg("factor on every layer's channels", gt=0, search="{choice: [0.5, 0.75, 1.0]}")
    ] = 1.0,
    squeeze_excite: Annotated[
        bool, Arg("weigh the channels by squeeze and excitation, in the blocks where the paper does")
    ] = True,
    dropout: Annotated[float, Arg("dropout before the head", ge=0, lt=1, search="{float: [0.0, 0.5]}")] = 0.2,
    stem: MobileStem = "auto",
    weights: Weights = None,
) -> nn.Module:
    """Build a MobileNetV3 (Howard et al. 2019), torchvision's own, of any width.

    Takes [N, channels, height, width], gives logits [N, classes].

    Raises:
        BuildError: the image is too small for the strides, or no pretrained weights for these arguments.
    """
    stem = choose_stem(stem, image_size, weights)
    given = {"size": size, "width_mult": width_mult, "squeeze_excite": squeeze_excite, "stem": stem}
    twin = find_twin(TWINS, weights, channels, given)
    check_mobile_size(image_size, stem)
    from torch import nn
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    row = partial(InvertedResidualConfig, dilation=1, width_mult=width_mult)
    strides = mobile_strides([stride for *_, stride in BLOCKS[size]], stem)
    settings = [
        row(inputs, kernel, between, outputs, squeezed and squeeze_excite, activation, stride)
        for stride, (inputs, kernel, between, outputs, squeezed, activation, _) in zip(
            strides, BLOCKS[size], strict=True
        )
    ]
    last = InvertedResidualConfig.adjust_channels(LAST[size], width_mult)
    # The weights were trained with TensorFlow's eps. torchvision also uses its momentum of 0.01; running statistics
    # would then need several hundred steps, and a short trial would be evaluated with the initial ones.
    norm = partial(nn.BatchNorm2d, eps=0.001)
    model = MobileNetV3(settings, last, num_classes=classes, dropout=dropout, norm_layer=norm)
    return with_anatomy(fit_mobile_stem(model, channels, stem), head="classifier.3", stages=_stages(size), twin=twin)


def _stages(size: str) -> list[list[str]]:
    """Return the stages: the stem, then the blocks, split at each stride of 2."""
    stages = [["features.0"]]
    for place, (*_, stride) in enumerate(BLOCKS[size], start=1):
        if stride == 2 or place == 1:
            stages.append([])
        stages[-1].append(f"features.{place}")
    stages[-1] += [f"features.{len(BLOCKS[size]) + 1}", "classifier.0"]
    return stages
