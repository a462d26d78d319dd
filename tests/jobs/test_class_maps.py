"""Where a network looked: the maps of all families, held to the closed form and to planted signs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imgcls_search import models
from imgcls_search.catalog import catalog
from imgcls_search.config import Component
from imgcls_search.data import InputShape
from imgcls_search.jobs import neighbours
from imgcls_search.jobs.class_maps import class_maps
from imgcls_search.models import MODELS
from imgcls_search.space import parse
from imgcls_search.worker import networks
from torch import nn

SPACES = Path(__file__).parents[2] / "spaces"
FAMILIES = sorted(set(MODELS) - {"timm"})
"""Those with a space of their own; take away also one whose layers have no places on the image."""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [32, (32, 48)])
def test_every_family_has_maps(family: str, size: Any) -> None:
    space = parse((SPACES / f"{family}.yaml").read_text(), catalog(), source=family)
    torch.manual_seed(0)
    model = networks.build_model(space.first(), InputShape(image_size=size, channels=1, classes=10))
    with torch.no_grad():
        # Heads that begin with zeros have no slopes yet.
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    height, width = (size, size) if isinstance(size, int) else size
    maps = class_maps(model, torch.randn(3, 1, height, width), [0, 5, 9])
    assert maps is not None, "no layer has places on the image: see FAMILIES"
    assert maps.shape[0] == 3
    assert maps.shape[1] * maps.shape[2] >= 4
    assert (maps.shape[1] == maps.shape[2]) == (height == width)
    assert np.isfinite(maps).all()
    assert maps.min() >= 0
    assert maps.max(axis=(1, 2)) == pytest.approx([1, 1, 1])
    # Nothing of it stays on the model.
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_map_before_a_mean_is_the_closed_form() -> None:
    """Of a mean over places and a linear layer the map is known: CAM (Zhou et al. 2016)."""
    torch.manual_seed(1)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    head = nn.Linear(8, 4)
    model = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    images, targets = torch.randn(5, 3, 8, 8), [0, 1, 2, 3, 0]
    maps = class_maps(model, images, targets)
    with torch.no_grad():
        raw = torch.einsum("nchw,nc->nhw", body(images), head.weight[targets]).relu()
    expected = raw / raw.flatten(1).amax(1)[:, None, None]
    np.testing.assert_allclose(maps, expected.numpy(), atol=1e-5)


def test_network_without_places_has_no_map() -> None:
    assert class_maps(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), torch.randn(2, 1, 8, 8), [0, 1]) is None


def planted(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return images with a sign in one quarter each, which alone tells the class, on noise that tells nothing."""
    draw = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(count, 1, 16, 16, generator=draw)
    labels = torch.randint(0, 2, (count,), generator=draw)
    quarters = torch.randint(0, 4, (count,), generator=draw)
    for image, label, quarter in zip(images, labels, quarters, strict=True):
        row, column = 8 * (quarter // 2) + 2, 8 * (quarter % 2) + 2
        image[0, row : row + 4, column : column + 4] += 3.0 if label else -3.0
    return images, labels, quarters


@pytest.mark.parametrize(
    ("family", "arguments"),
    [
        ("resnet", {"depths": [1, 1, 1], "width": 8}),
        ("vit", {"patch_size": 4, "width": 32, "depth": 2, "heads": 2, "pooling": "cls"}),
        ("vit", {"patch_size": 4, "width": 32, "depth": 2, "heads": 2, "pooling": "mean"}),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_maps_are_brightest_where_the_sign_is(family: str, arguments: dict[str, Any], seed: int) -> None:
    torch.manual_seed(seed)
    component = Component(path=f"model.{family}", name=family, args=arguments)
    model = models.build_model(component, image_size=16, channels=1, classes=2)
    images, labels, _ = planted(256, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(25):
        for part in torch.randperm(256).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[part]), labels[part]).backward()
            optimizer.step()
    images, labels, quarters = planted(64, seed=2)
    model.eval()
    assert (model(images).argmax(1) == labels).float().mean() > 0.9
    maps = class_maps(model, images, labels.tolist())
    assert maps is not None
    half = maps.shape[1] // 2
    means = maps.reshape(64, 2, half, 2, half).mean(axis=(2, 4)).reshape(64, 4)
    assert (means.argmax(axis=1) == quarters.numpy()).mean() > 0.7


def test_nearest_are_those_that_the_last_layer_reads_alike() -> None:
    torch.manual_seed(0)
    component = Component(path="model.resnet", name="resnet", args={"depths": [1, 1, 1], "width": 8})
    model = models.build_model(component, image_size=16, channels=1, classes=2)
    images, _, _ = planted(40, seed=3)
    known = neighbours.features(model, iter(images.split(16)))
    assert known.shape[0] == 40
    np.testing.assert_allclose(np.linalg.norm(known, axis=1), 1, rtol=1e-5)
    asked = neighbours.features(model, iter([images[[7, 31]] + 1e-4]))
    found = neighbours.nearest(asked, known, 3)
    assert found[:, 0].tolist() == [7, 31]
    assert found.shape == (2, 3)
    # As scikit-learn tells it.
    from sklearn.neighbors import NearestNeighbors

    reference = NearestNeighbors(n_neighbors=3, metric="cosine").fit(known).kneighbors(asked, return_distance=False)
    assert found.tolist() == reference.tolist()


def test_costly_networks_look_at_some_training_images() -> None:
    assert neighbours.affordable(1000, 1e6).tolist() == list(range(1000))
    drawn = neighbours.affordable(50_000, 4e9)
    assert len(drawn) == len(set(drawn.tolist())) == neighbours.LEAST_IMAGES
    assert (np.diff(drawn) > 0).all()
    assert drawn.tolist() == neighbours.affordable(50_000, 4e9).tolist()
