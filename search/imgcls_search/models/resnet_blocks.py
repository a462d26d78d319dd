"""torchvision's residual blocks with stochastic depth."""

from __future__ import annotations

from typing import Any

import torch
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import StochasticDepth


class DropPathBasicBlock(BasicBlock):  # type: ignore[misc]
    """torchvision's basic block, whose branch is dropped at random for single images of a batch."""

    def __init__(self, *args: Any, drop_path: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # It has no parameters, so that state dict names stay torchvision's.
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output feature maps."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(self.drop_path(out) + identity)  # type: ignore[no-any-return]


class DropPathBottleneck(Bottleneck):  # type: ignore[misc]
    """torchvision's bottleneck block, whose branch is dropped at random for single images of a batch."""

    def __init__(self, *args: Any, drop_path: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output feature maps."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(self.drop_path(out) + identity)  # type: ignore[no-any-return]
