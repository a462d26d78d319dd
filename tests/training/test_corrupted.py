"""`corruption_accuracy`: the mean over worse versions of the images, measured if it is requested."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from imgcls_search.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from imgcls_search.measures import CORRUPTION, bounds, has_meaning, is_share
from imgcls_search.training.evaluation import corruptions, evaluate
from imgcls_search.training.images import EVALUATION_BATCH, ImageSet
from imgcls_search.training.metrics import Wanted
from torch import nn


@pytest.fixture(scope="module")
def images() -> ImageSet:
    """More images than go through a network at a time."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (EVALUATION_BATCH + 40, 3, 8, 8), dtype=np.uint8)
    labels = (pixels[:, 0].mean(axis=(1, 2)) > pixels[:, 1].mean(axis=(1, 2))).astype(np.int64)
    return ImageSet(pixels=pixels, labels=labels, mean=(0.5,) * 3, std=(0.25,) * 3, device="cpu")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A network that compares the red with the green of an image, as the labels do."""
    layer = nn.Linear(3 * 64, 2)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
        layer.weight[1, :64], layer.weight[1, 64:128] = 1.0, -1.0
    return nn.Sequential(nn.Flatten(), layer)


def test_it_is_the_mean_over_corruptions_and_severities(model: nn.Module, images: ImageSet) -> None:
    table = corruptions(model, images)
    assert set(table) == {(name, severity) for name in CORRUPTIONS for severity in SEVERITIES}
    assert len(table) == 15
    numbers = torch.arange(len(images))
    for (name, severity), share in table.items():
        worse = corrupt(torch.from_numpy(np.asarray(images.pixels)), name, severity, numbers)
        with torch.no_grad():
            said = model(images.normalise(worse)).argmax(1).numpy()
        assert share == pytest.approx((said == images.labels).mean())
    found = evaluate(model, images, wanted=Wanted(named=(CORRUPTION,)))
    assert found[CORRUPTION] == pytest.approx(np.mean(list(table.values())))
    assert 0.5 < found[CORRUPTION] < found["accuracy"] == 1.0


def test_it_is_measured_where_it_is_named_only(model: nn.Module, images: ImageSet) -> None:
    for wanted in (None, Wanted(), Wanted(classes=("a", "b"), is_full=True)):
        assert CORRUPTION not in evaluate(model, images, wanted=wanted)


def test_it_is_a_share_of_images_of_one_class() -> None:
    assert has_meaning(CORRUPTION, several=False)
    assert not has_meaning(CORRUPTION, several=True)
    assert bounds(CORRUPTION) == (0, 1)
    assert is_share(CORRUPTION)
