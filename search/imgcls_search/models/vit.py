"""Vision transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from imgcls_search.errors import BuildError
from imgcls_search.image_size import ImageSize, sides
from imgcls_search.models.anatomy import Weights, find_twin, with_anatomy
from imgcls_search.signature import Arg

if TYPE_CHECKING:
    from torch import nn

TWINS: dict[str, dict[str, Any]] = {
    f"vit_{letter}_{patch_size}": {"patch_size": patch_size, **size, "mlp_ratio": 4.0, "pooling": "cls"}
    for letter, size in (
        ("b", {"width": 768, "depth": 12, "heads": 12}),
        ("l", {"width": 1024, "depth": 24, "heads": 16}),
    )
    for patch_size in (16, 32)
}
"""torchvision's models with these arguments, at 224 pixels."""


def vit(
    *,
    image_size: ImageSize,
    channels: int,
    classes: int,
    patch_size: Annotated[int, Arg("side of a square patch, pixels; must divide both sides of the image", ge=1)] = 4,
    width: Annotated[
        int, Arg("features per token; the heads share them", ge=1, search="{int: [32, 192], step: 32}")
    ] = 96,
    depth: Annotated[int, Arg("transformer blocks", ge=1, search="{int: [2, 8]}")] = 6,
    heads: Annotated[int, Arg("attention heads; must divide the width", ge=1, search="{choice: [2, 4]}")] = 4,
    mlp_ratio: Annotated[float, Arg("hidden features of a block's MLP / width", gt=0, search="{choice: [2, 4]}")] = 4.0,
    dropout: Annotated[float, Arg("dropout after embedding, attention and MLP", ge=0, lt=1)] = 0.0,
    drop_path: Annotated[
        float,
        Arg(
            "chance to skip a block's branch, rising to this at the last (stochastic depth)",
            ge=0,
            lt=1,
            search="{float: [0, 0.2]}",
        ),
    ] = 0.0,
    pooling: Annotated[
        Literal["cls", "mean"],
        Arg(
            "what the head reads, cls: the class token; mean: the mean of the patches' tokens, the class token stays "
            "among them but is not read",
            search="{choice: [cls, mean]}",
        ),
    ] = "cls",
    weights: Weights = None,
) -> nn.Module:
    """Build a vision transformer (Dosovitskiy et al. 2020), torchvision's own.

    With `drop_path` training leaves out each branch of block k of K at the rate drop_path * k / K (Huang et al. 2016).

    Takes [N, channels, height, width], gives logits [N, classes].

    Raises:
        BuildError: the patch does not divide the image, the heads do not divide the width, or no pretrained weights
            for these arguments.
    """
    given = {"patch_size": patch_size, "width": width, "depth": depth, "heads": heads}
    twin = find_twin(TWINS, weights, channels, {**given, "mlp_ratio": mlp_ratio, "pooling": pooling})
    for side in sides(image_size):
        _must_divide("patch_size", patch_size, side, "the image size")
    _must_divide("heads", heads, width, "the width")
    from torch import nn

    from imgcls_search.models.vit_blocks import PoolingVisionTransformer

    model: nn.Module = PoolingVisionTransformer(
        image_size=image_size,
        patch_size=patch_size,
        num_layers=depth,
        num_heads=heads,
        hidden_dim=width,
        mlp_dim=max(1, round(width * mlp_ratio)),
        dropout=dropout,
        num_classes=classes,
        drop_path=drop_path,
        pooling=pooling,
    )
    if channels != 3:
        # torchvision always embeds three channels: replace the layer, with the same initialisation.
        embed = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)
        nn.init.trunc_normal_(embed.weight, std=(1 / (channels * patch_size * patch_size)) ** 0.5)
        if embed.bias is not None:
            nn.init.zeros_(embed.bias)
        model.conv_proj = embed
    stages = [["conv_proj", "class_token", "encoder.pos_embedding"]]
    stages += [[f"encoder.layers.encoder_layer_{index}"] for index in range(depth)]
    stages[-1].append("encoder.ln")
    return with_anatomy(model, head="heads.head", stages=stages, twin=twin)


def _must_divide(argument: str, divisor: int, total: int, what: str) -> None:
    if total % divisor:
        allowed = ", ".join(str(n) for n in range(1, total + 1) if total % n == 0)
        raise BuildError(argument, f"{divisor} does not divide {what} {total}; allowed: {allowed}")
