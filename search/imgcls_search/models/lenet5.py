"""LeNet-5."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Annotated, Literal

from imgcls_search.errors import BuildError
from imgcls_search.image_size import ImageSize, shorter, shown, sides
from imgcls_search.models.anatomy import Weights, refuse_imagenet, with_anatomy
from imgcls_search.signature import Arg

if TYPE_CHECKING:
    from torch import nn


def lenet5(
    *,
    image_size: ImageSize,
    channels: int,
    classes: int,
    width: Annotated[
        float, Arg("factor on every layer's channels and features", gt=0, search="{choice: [1, 2, 4]}")
    ] = 1.0,
    padding: Annotated[
        Literal["auto", "valid", "same"],
        Arg("valid: none, as in the paper; same: keeps the size, for small images; auto: same below 28 pixels"),
    ] = "auto",
    activation: Annotated[Literal["tanh", "relu"], Arg("tanh as in the paper, or relu")] = "relu",
    pool: Annotated[Literal["average", "max"], Arg("average as in the paper, or max")] = "max",
    weights: Weights = None,
) -> nn.Module:
    """Build LeNet-5 (LeCun et al. 1998) for any image size: two 5x5 convolutions, each pooled, and three linear layers.

    At 32x32 with one channel and `padding: valid` it has the paper's layer sizes with today's full connections and
    softmax: 61,706 parameters for 10 classes. Takes [N, channels, height, width], gives logits [N, classes].

    Raises:
        BuildError: the image is too small for the two convolutions and poolings.
    """
    padding = ("same" if shorter(image_size) < 28 else "valid") if padding == "auto" else padding
    height, width_of_map = _map(image_size, padding)
    refuse_imagenet(weights)
    from torch import nn

    act = nn.Tanh if activation == "tanh" else nn.ReLU
    pooling = nn.AvgPool2d if pool == "average" else nn.MaxPool2d
    conv1, conv2, hidden1, hidden2 = (max(1, round(n * width)) for n in (6, 16, 120, 84))
    pad = 2 if padding == "same" else 0
    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, conv1, 5, padding=pad),
            act1=act(),
            pool1=pooling(2),
            conv2=nn.Conv2d(conv1, conv2, 5, padding=pad),
            act2=act(),
            pool2=pooling(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(conv2 * height * width_of_map, hidden1),
            act3=act(),
            fc2=nn.Linear(hidden1, hidden2),
            act4=act(),
            fc3=nn.Linear(hidden2, classes),
        )
    )
    return with_anatomy(model, head="fc3", stages=[("conv1",), ("conv2",), ("fc1",), ("fc2",)], twin=None)


def _map(image_size: ImageSize, padding: str) -> tuple[int, int]:
    """Return height and width of the last feature map, pixels."""
    shrink = 4 if padding == "valid" else 0
    height, width = (((side - shrink) // 2 - shrink) // 2 for side in sides(image_size))
    if min(height, width) < 1:
        least = 16 if padding == "valid" else 4
        raise BuildError("padding", f"{padding!r} needs images of at least {least} pixels, got {shown(image_size)}")
    return height, width
