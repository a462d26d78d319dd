"""Residual networks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from imgcls_search.errors import BuildError
from imgcls_search.image_size import ImageSize, by, shorter
from imgcls_search.models.anatomy import Weights, find_twin, with_anatomy
from imgcls_search.models.stems import PoolingStem, choose_stem
from imgcls_search.signature import Arg

if TYPE_CHECKING:
    from torch import nn

TWINS: dict[str, dict[str, Any]] = {
    "resnet18": {"block": "basic", "depths": (2, 2, 2, 2), "width": 64, "stem": "large"},
    "resnet34": {"block": "basic", "depths": (3, 4, 6, 3), "width": 64, "stem": "large"},
    "resnet50": {"block": "bottleneck", "depths": (3, 4, 6, 3), "width": 64, "stem": "large"},
    "resnet101": {"block": "bottleneck", "depths": (3, 4, 23, 3), "width": 64, "stem": "large"},
    "resnet152": {"block": "bottleneck", "depths": (3, 8, 36, 3), "width": 64, "stem": "large"},
}
"""torchvision's models with these arguments."""


def resnet(
    *,
    image_size: ImageSize,
    channels: int,
    classes: int,
    depth: Annotated[
        Literal[18, 34, 50, 101, 152] | None,
        Arg("a network of the paper by its number of layers, instead of depths and block; null: use those"),
    ] = None,
    depths: Annotated[
        tuple[int, ...] | None,
        Arg("blocks of each stage; null: 2, 2, 2, 2", ge=1, search="{choice: [[1, 1, 1], [2, 2, 2]]}"),
    ] = None,
    width: Annotated[int, Arg("channels of the first stage; each stage doubles them", ge=1)] = 64,
    block: Annotated[
        Literal["basic", "bottleneck"] | None, Arg("two 3x3 convolutions, or 1x1, 3x3, 1x1; null: basic")
    ] = None,
    drop_path: Annotated[
        float,
        Arg(
            "chance to skip a block, rising to this at the last (stochastic depth)",
            ge=0,
            lt=1,
            search="{float: [0, 0.2]}",
        ),
    ] = 0.0,
    stem: PoolingStem = "auto",
    weights: Weights = None,
) -> nn.Module:
    """Build a residual network (He et al. 2015) from torchvision's own blocks, with any number of stages.

    torchvision's `ResNet` class has exactly four stages of 64 to 512 channels; here they are arguments, and the names
    of the layers are torchvision's, so that `depth: 18, stem: large` is its ResNet-18. With `drop_path` training
    leaves out the branch of block k of K at the rate drop_path * k / K (Huang et al. 2016).

    Takes [N, channels, height, width], gives logits [N, classes].

    Raises:
        BuildError: a depth beside depths or block, more stages than the image can be halved, or no pretrained weights
            for these arguments.
    """
    _refuse_both(depth, depths=depths, block=block)
    if depth is not None:
        block, depths = TWINS[f"resnet{depth}"]["block"], TWINS[f"resnet{depth}"]["depths"]
    block = block or "basic"
    depths = tuple(depths or (2, 2, 2, 2))
    stem = choose_stem(stem, image_size, weights)
    twin = find_twin(TWINS, weights, channels, {"block": block, "depths": depths, "width": width, "stem": stem})
    # Blame the argument that the user gave: the depth, or the list.
    _check_stages("depths" if depth is None else "depth", len(depths), image_size, stem)
    from torch import nn

    layers = _stem(channels, width, stem)
    rates = [drop_path * (place + 1) / sum(depths) for place in range(sum(depths))]
    inputs = width
    for stage, blocks in enumerate(depths):
        first = sum(depths[:stage])
        stride = 1 if stage == 0 else 2
        layers[f"layer{stage + 1}"], inputs = _stage(
            block, inputs, width * 2**stage, stride, rates[first : first + blocks]
        )
    layers["avgpool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(inputs, classes)
    model = nn.Sequential(layers)
    _initialise(model)
    stages = [("conv1", "bn1"), *((f"layer{stage + 1}",) for stage in range(len(depths)))]
    return with_anatomy(model, head="fc", stages=stages, twin=twin)


def _refuse_both(depth: int | None, **given: Any) -> None:
    if depth is None:
        return
    for argument, value in given.items():
        if value is not None:
            got = list(value) if isinstance(value, (list, tuple)) else value
            raise BuildError(argument, f"{got!r} beside depth {depth}, which gives it; allowed: null, or no depth")


def _check_stages(argument: str, stages: int, image_size: ImageSize, stem: str) -> None:
    # Stage k works on size / 2^k pixels; below one pixel a stage would only see padding.
    largest = (shorter(image_size) // (4 if stem == "large" else 1)).bit_length()
    if stages > largest:
        raise BuildError(
            argument,
            f"{stages} stages are too many for a {by(image_size)} image behind a {stem} stem; "
            f"allowed: at most {largest}",
        )


def _stem(channels: int, width: int, stem: str) -> OrderedDict[str, nn.Module]:
    from torch import nn

    kernel, stride = (3, 1) if stem == "small" else (7, 2)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False),
        bn1=nn.BatchNorm2d(width),
        relu=nn.ReLU(inplace=True),
    )
    if stem == "large":
        layers["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
    return layers


def _stage(block: str, inputs: int, planes: int, stride: int, rates: Sequence[float]) -> tuple[nn.Module, int]:
    """Return the blocks, one per stochastic depth rate, and their number of channels."""
    from torch import nn
    from torchvision.models.resnet import BasicBlock, Bottleneck

    from imgcls_search.models.resnet_blocks import DropPathBasicBlock, DropPathBottleneck

    kind: Any = BasicBlock if block == "basic" else Bottleneck
    dropping: Any = DropPathBasicBlock if block == "basic" else DropPathBottleneck
    outputs = planes * kind.expansion
    blocks = []
    for place, rate in enumerate(rates):
        if place > 0:
            inputs, stride = outputs, 1
        downsample = None
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))
        given = (inputs, planes, stride, downsample)
        blocks.append(dropping(*given, drop_path=rate) if rate else kind(*given))
    return nn.Sequential(*blocks), outputs


def _initialise(model: nn.Module) -> None:
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
