"""Densely connected networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from imgcls_search.errors import BuildError
from imgcls_search.image_size import ImageSize, shorter, shown
from imgcls_search.models.anatomy import Weights, find_twin, with_anatomy
from imgcls_search.models.stems import PoolingStem, choose_stem
from imgcls_search.signature import Arg

if TYPE_CHECKING:
    from torch import nn

TWINS: dict[str, dict[str, Any]] = {
    "densenet121": {"growth_rate": 32, "depths": (6, 12, 24, 16), "width": 64, "stem": "large"},
    "densenet161": {"growth_rate": 48, "depths": (6, 12, 36, 24), "width": 96, "stem": "large"},
    "densenet169": {"growth_rate": 32, "depths": (6, 12, 32, 32), "width": 64, "stem": "large"},
    "densenet201": {"growth_rate": 32, "depths": (6, 12, 48, 32), "width": 64, "stem": "large"},
}
"""torchvision's models with these arguments."""


def densenet(
    *,
    image_size: ImageSize,
    channels: int,
    classes: int,
    growth_rate: Annotated[
        int, Arg("channels that each layer adds to its input", ge=1, search="{choice: [12, 24, 32]}")
    ] = 32,
    depths: Annotated[
        tuple[int, ...],
        Arg(
            "layers of each dense block; between two blocks the image is halved",
            ge=1,
            search="{choice: [[6, 6, 6], [16, 16, 16]]}",
        ),
    ] = (6, 12, 24, 16),
    width: Annotated[
        int | None, Arg("channels of the stem; null: twice the growth rate, as in the paper", ge=1)
    ] = None,
    dropout: Annotated[float, Arg("dropout after each layer of a block", ge=0, lt=1, search="{float: [0, 0.3]}")] = 0.0,
    stem: PoolingStem = "auto",
    weights: Weights = None,
) -> nn.Module:
    """Build a densely connected network (Huang et al. 2017, DenseNet-BC), torchvision's own with any number of blocks.

    A transition between two blocks halves the channels and the image. The defaults with `stem: large` are
    DenseNet-121. Takes [N, channels, height, width], gives logits [N, classes].

    Raises:
        BuildError: more blocks than the image can be halved, or no pretrained weights for these arguments.
    """
    depths = tuple(depths)
    width = 2 * growth_rate if width is None else width
    stem = choose_stem(stem, image_size, weights)
    given = {"growth_rate": growth_rate, "depths": depths, "width": width, "stem": stem}
    twin = find_twin(TWINS, weights, channels, given)
    _check_blocks(len(depths), image_size, stem)
    from torch import nn
    from torchvision.models import DenseNet

    model: nn.Module = DenseNet(
        growth_rate=growth_rate,
        block_config=depths,
        num_init_features=width,
        drop_rate=dropout,
        num_classes=classes,
    )
    features: Any = model.features
    if stem == "small" or channels != 3:
        # torchvision's first convolution is 7x7 on three channels: replace it, with the same initialisation.
        kernel, stride = (3, 1) if stem == "small" else (7, 2)
        features.conv0 = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(features.conv0.weight)
    if stem == "small":
        del features.pool0
    last = len(depths)
    stages = [
        ("features.conv0", "features.norm0"),
        *((f"features.denseblock{block}", f"features.transition{block}") for block in range(1, last)),
        # torchvision calls the last normalisation norm5 for any number of blocks.
        (f"features.denseblock{last}", "features.norm5"),
    ]
    return with_anatomy(model, head="classifier", stages=stages, twin=twin)


def _check_blocks(blocks: int, image_size: ImageSize, stem: str) -> None:
    # Each transition halves the image, rounding down; the large stem halves it twice before that, rounding up.
    behind_stem = 2 ** (blocks - 1)
    smallest = {"small": behind_stem, "large": 4 * (behind_stem - 1) + 1}
    least = smallest[stem]
    pixels = shorter(image_size)
    if pixels >= least:
        return
    if pixels >= smallest["small"]:
        sizes = ", ".join(f"{name} {size}" for name, size in smallest.items())
        raise BuildError(
            "stem",
            f"{stem!r} and {blocks} blocks need images of at least {least} pixels, got {shown(image_size)}; "
            f"smallest sizes: {sizes}",
        )
    side = pixels if stem == "small" else -(-pixels // 4)
    raise BuildError(
        "depths",
        f"{blocks} blocks behind a {stem} stem need images of at least {least} pixels, got {shown(image_size)}; "
        f"allowed: at most {side.bit_length()} blocks",
    )
