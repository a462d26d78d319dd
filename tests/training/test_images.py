"""Images as a training sees them: how many are computed at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from imgcls_search.training.evaluation import predict
from imgcls_search.training.images import CPU_PIXELS, EVALUATION_BATCH, FeatureSet, ImageSet, in_order
from torch import nn


class Counting(nn.Module):
    """A network that gives the number written into an image, and notes how many images come at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[int] = []

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return [N, 1] of [N, C, H, W]."""
        self.counts.append(len(pixels))
        return pixels[:, 0, 0, :1]


def numbered(count: int, height: int, width: int) -> ImageSet:
    pixels = np.zeros((count, 1, height, width), dtype=np.uint8)
    pixels[:, 0, 0, 0] = np.arange(count) % 256
    return ImageSet(pixels=pixels, labels=np.zeros(count, np.int64), mean=(0.0,), std=(1 / 255,), device="cpu")


@pytest.mark.parametrize(("count", "height", "width"), [(50, 192, 256), (3, 2000, 1000), (600, 28, 28), (1, 8, 8)])
def test_large_images_are_computed_in_small_steps_and_all_of_them(count: int, height: int, width: int) -> None:
    model = Counting()
    said = predict(model, numbered(count, height, width))
    assert said[:, 0].tolist() == pytest.approx([number % 256 for number in range(count)])
    most = max(1, CPU_PIXELS // (height * width))
    assert max(model.counts) == min(count, most, EVALUATION_BATCH)
    assert sum(model.counts) == count


def test_features_are_no_large_images() -> None:
    features = FeatureSet(pixels=np.zeros((700, 4096), np.float32), labels=np.zeros(700, np.int64), device="cpu")
    assert [len(part) for part in in_order(features)] == [EVALUATION_BATCH, 700 - EVALUATION_BATCH]
    assert [len(part) for part in in_order(features, most=3)] == [3]
