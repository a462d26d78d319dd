"""ConvNeXts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from imgcls_search.errors import BuildError
from imgcls_search.image_size import ImageSize, shorter, shown
from imgcls_search.models.anatomy import Weights, find_twin, with_anatomy
from imgcls_search.models.stems import Stem, choose_stem
from imgcls_search.signature import Arg

if TYPE_CHECKING:
    from torch import nn

PATCH = {"small": 2, "large": 4}
"""Side of the stem's patches, pixels."""

TWINS: dict[str, dict[str, Any]] = {
    "convnext_tiny": {"depths": (3, 3, 9, 3), "width": 96, "stem": "large"},
    "convnext_small": {"depths": (3, 3, 27, 3), "width": 96, "stem": "large"},
    "convnext_base": {"depths": (3, 3, 27, 3), "width": 128, "stem": "large"},
    "convnext_large": {"depths": (3, 3, 27, 3), "width": 192, "stem": "large"},
}
"""torchvision's models with these arguments."""


def convnext(
    *,
    image_size: ImageSize,
    channels: int,
    classes: int,
    depths: Annotated[
        tuple[int, ...],
        Arg("blocks of each stage; each stage halves the feature map", ge=1, search="{choice: [[1, 1, 1], [2, 2, 2]]}"),
    ] = (2, 2, 2),
    width: Annotated[
        int, Arg("channels of the first stage; each stage doubles them", ge=1, search="{int: [32, 96], step: 16}")
    ] = 48,
    drop_path: Annotated[
        float,
        Arg(
            "chance to skip a block, rising to this at the last (stochastic depth)",
            ge=0,
            lt=1,
            search="{float: [0.0, 0.3]}",
        ),
    ] = 0.1,
    layer_scale: Annotated[
        float,
        Arg("factor on each block's output at the start; it is learned", gt=0, search="{float: [1e-6, 1], log: true}"),
    ] = 1e-6,
    stem: Annotated[
        Stem,
        Arg("small: patches of 2x2 pixels; large: patches of 4x4 pixels; auto: small up to 64 pixels"),
    ] = "auto",
    weights: Weights = None,
) -> nn.Module:
    """Build a ConvNeXt (Liu et al. 2022), torchvision's own, with any number of stages.

    Takes [N, channels, height, width], gives logits [N, classes].

    Raises:
        BuildError: the image is smaller than a patch or has room for fewer stages, a network of one single block, or
            no pretrained weights for these arguments.
    """
    stem = choose_stem(stem, image_size, weights)
    twin = find_twin(TWINS, weights, channels, {"depths": depths, "width": width, "stem": stem})
    _check_stages(image_size, depths, stem)
    from torch import nn
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    last = len(depths) - 1
    settings = [
        CNBlockConfig(width * 2**stage, width * 2 ** (stage + 1) if stage < last else None, depth)
        for stage, depth in enumerate(depths)
    ]
    model = ConvNeXt(settings, stochastic_depth_prob=drop_path, layer_scale=layer_scale, num_classes=classes)
    if channels != 3 or stem == "small":
        # torchvision always takes three channels in 4x4 patches: replace the layer, with the same initialisation.
        patches = nn.Conv2d(channels, width, kernel_size=PATCH[stem], stride=PATCH[stem])
        nn.init.trunc_normal_(patches.weight, std=0.02)
        if patches.bias is not None:
            nn.init.zeros_(patches.bias)
        model.features[0][0] = patches
    # After the stem, torchvision alternates stages and downsampling layers.
    stages = [["features.0"], ["features.1"]]
    stages += [[f"features.{2 * stage}", f"features.{2 * stage + 1}"] for stage in range(1, len(depths))]
    stages[-1].append("classifier.0")
    return with_anatomy(model, head="classifier.2", stages=stages, twin=twin)


def _check_stages(image_size: ImageSize, depths: tuple[int, ...], stem: str) -> None:
    # Stage k works on size / 2^k pixels; a convolution without padding cannot halve a single one.
    largest = (shorter(image_size) // PATCH[stem]).bit_length()
    if largest == 0:
        raise BuildError("stem", f"{stem!r} needs images of at least {PATCH[stem]} pixels, got {shown(image_size)}")
    if len(depths) > largest:
        least = PATCH[stem] * 2 ** (len(depths) - 1)
        raise BuildError(
            "depths",
            f"{len(depths)} stages need images of at least {least} pixels behind a {stem} stem, "
            f"got {shown(image_size)}; allowed: at most {largest}",
        )
    if sum(depths) == 1:
        # torchvision spreads stochastic depth over the blocks and divides by their number minus 1.
        raise BuildError("depths", "one block in all is too few; allowed: at least 2")
