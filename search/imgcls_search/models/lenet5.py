"""LeNet-5."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Annotated, Literal

from imgcls_search.errors import BuildError
from imgcls_search.models.anatomy import with_anatomy
from imgcls_search.signature import Arg

if TYPE_CHECKING:
    from torch import nn


def lenet5(
    *,
    image_size: int,
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
) -> nn.Module:
    """Build LeNet-5 (LeCun et al. 1998) for any image size: two 5x5 convolutions, each pooled, and three linear layers.

    At 32x32 with one channel and `padding: valid` it has the paper's layer sizes with today's full connections and
    softmax: 61,706 parameters for 10 classes. Takes [N, channels, image_size, image_size], gives logits [N, classes].

    Raises:
        BuildError: the image is too small for the two convolutions and poolings.
    """
    padding = ("same" if image_size < 28 else "valid") if padding == "auto" else padding
    side = _side(image_size, padding)
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
            fc1=nn.Linear(conv2 * side * side, hidden1),
            act3=act(),
            fc2=nn.Linear(hidden1, hidden2),
            act4=act(),
            fc3=nn.Linear(hidden2, classes),
        )
    )
    return with_anatomy(model, head="fc3", stages=[("conv1",), ("conv2",), ("fc1",), ("fc2",)], twin=None)


def _side(image_size: int, padding: str) -> int:
    """Return the side of the last feature map, pixels."""
    shrink = 4 if padding == "valid" else 0
    side = ((image_size - shrink) // 2 - shrink) // 2
    if side < 1:
        least = 16 if padding == "valid" else 4
        raise BuildError("padding", f"{padding!r} needs images of at least {least} pixels, got {image_size}")
    return side
