"""EfficientNets."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from imgcls_search.errors import BuildError
from imgcls_search.image_size import ImageSize
from imgcls_search.models.anatomy import Weights, find_twin, with_anatomy
from imgcls_search.models.stems import MobileStem, check_mobile_size, choose_stem, fit_mobile_stem, mobile_strides
from imgcls_search.signature import Arg

if TYPE_CHECKING:
    from torch import nn

STAGES = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)
"""Table 1 of the paper: expansion, kernel, stride, channels in, channels out, blocks."""

VARIANTS = {
    "b0": (1.0, 1.0, 0.2),
    "b1": (1.0, 1.1, 0.2),
    "b2": (1.1, 1.2, 0.3),
    "b3": (1.2, 1.4, 0.3),
    "b4": (1.4, 1.8, 0.4),
    "b5": (1.6, 2.2, 0.4),
    "b6": (1.8, 2.6, 0.5),
    "b7": (2.0, 3.1, 0.5),
}
"""Width multiplier, depth multiplier and dropout of the paper's networks."""

TWINS: dict[str, dict[str, Any]] = {
    f"efficientnet_{variant}": {"width_mult": width, "depth_mult": depth, "stem": "large"}
    for variant, (width, depth, _) in VARIANTS.items()
}
"""torchvision's models with these arguments."""

_WITH_TENSORFLOW_EPS = ("efficientnet_b5", "efficientnet_b6", "efficientnet_b7")


def efficientnet(
    *,
    image_size: ImageSize,
    channels: int,
    classes: int,
    variant: Annotated[
        Literal["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7"] | None,
        Arg("one of the paper's networks, for its two multipliers and its dropout; null: as they are given"),
    ] = None,
    width_mult: Annotated[
        float | None,
        Arg("factor on every layer's channels; null: the variant's, or 1", gt=0, search="{choice: [0.25, 0.5, 1.0]}"),
    ] = None,
    depth_mult: Annotated[
        float | None,
        Arg("factor on every stage's blocks; null: the variant's, or 1", gt=0, search="{choice: [0.5, 1.0]}"),
    ] = None,
    dropout: Annotated[
        float | None,
        Arg("dropout before the head; null: the variant's, or 0.2", ge=0, lt=1, search="{float: [0.0, 0.5]}"),
    ] = None,
    drop_path: Annotated[
        float,
        Arg(
            "chance to skip a block, rising towards this at the last (stochastic depth)",
            ge=0,
            lt=1,
            search="{float: [0.0, 0.3]}",
        ),
    ] = 0.2,
    stem: MobileStem = "auto",
    weights: Weights = None,
) -> nn.Module:
    """Build an EfficientNet (Tan and Le 2019), torchvision's own, of any width and depth.

    Takes [N, channels, height, width], gives logits [N, classes].

    Raises:
        BuildError: a multiplier that the variant does not have, an image too small for the strides, or no pretrained
            weights for these arguments.
    """
    width, depth, dropped = VARIANTS[variant or "b0"]
    width = _multiplier("width_mult", width_mult, width, variant)
    depth = _multiplier("depth_mult", depth_mult, depth, variant)
    stem = choose_stem(stem, image_size, weights)
    given = {"width_mult": width, "depth_mult": depth, "stem": stem}
    twin = find_twin(TWINS, weights, channels, given)
    check_mobile_size(image_size, stem)
    from torch import nn
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    strides = mobile_strides([row[2] for row in STAGES], stem)
    settings = [
        MBConvConfig(expansion, kernel, stride, inputs, outputs, blocks, width_mult=width, depth_mult=depth)
        for stride, (expansion, kernel, _, inputs, outputs, blocks) in zip(strides, STAGES, strict=True)
    ]
    # The weights of the largest networks were trained with TensorFlow's eps. Its momentum of 0.01 is left out: running
    # statistics would need several hundred steps, more than a short trial has.
    norm = partial(nn.BatchNorm2d, eps=0.001) if twin in _WITH_TENSORFLOW_EPS else nn.BatchNorm2d
    model = EfficientNet(
        settings,
        dropout=dropped if dropout is None else dropout,
        stochastic_depth_prob=drop_path,
        num_classes=classes,
        norm_layer=norm,
    )
    last = len(STAGES)
    stages = [*((f"features.{place}",) for place in range(last)), (f"features.{last}", f"features.{last + 1}")]
    return with_anatomy(fit_mobile_stem(model, channels, stem), head="classifier.1", stages=stages, twin=twin)


def _multiplier(argument: str, given: float | None, named: float, variant: str | None) -> float:
    if given is None:
        return named
    if variant is not None and given != named:
        raise BuildError(argument, f"{given!r} contradicts variant {variant!r}; allowed beside it: null or {named}")
    return given
