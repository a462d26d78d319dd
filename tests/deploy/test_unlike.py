"""Distances of features from those of the training, as arrays and inside of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from imgcls_search.data import InputShape
from imgcls_search.deploy import additions, unlike
from imgcls_search.deploy.artifact import Artifact
from imgcls_search.deploy.onnx import export_onnx
from sklearn.decomposition import PCA


def test_the_distance_is_that_of_probabilistic_principal_components() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(100, 100)) * np.linspace(3, 0.5, 100)
    training, others = (rng.normal(size=(count, 100)) @ mixing + 5 for count in (3000, 50))
    found = unlike.fit(training)
    assert found is not None
    likely = PCA(unlike.DIRECTIONS, svd_solver="full").fit(training).score_samples(others)
    distances = found.distance(others)
    # A log density is half of the negative distance, and a constant.
    constants = likely + distances / 2
    assert constants.std() < 1e-3 * distances.std()


@pytest.mark.parametrize(("images", "values"), [(300, 100), (150, 400), (400, 30)])
def test_directions_are_those_of_the_singular_value_decomposition(images: int, values: int) -> None:
    rng = np.random.default_rng(0)
    training = rng.normal(size=(images, values)) * np.linspace(3, 0.5, values) + 5
    found = unlike.fit(training)
    assert found is not None
    _, singular, rows = np.linalg.svd(training - training.mean(axis=0), full_matrices=False)
    count = min(unlike.DIRECTIONS, values - 1, images // 2)
    variances = singular**2 / images
    assert found.deviations == pytest.approx(np.sqrt(variances[:count]), rel=1e-9)
    assert abs((found.directions * rows[:count].T).sum(axis=0)) == pytest.approx(np.ones(count), abs=1e-6)
    assert found.rest == pytest.approx(np.sqrt(variances[count:].sum() / (values - count)), rel=1e-9)


@pytest.mark.parametrize("features", [np.zeros((400, 8)), np.ones((3, 8)), np.ones((400, 1))])
def test_features_that_say_nothing_have_no_spread(features: np.ndarray) -> None:
    assert unlike.fit(features) is None


def test_one_image_in_twenty_is_above_the_threshold() -> None:
    scores = np.random.default_rng(0).random(400)
    limit = unlike.threshold(scores)
    assert limit is not None
    assert 19 <= (scores > limit).sum() <= 20
    assert unlike.threshold(scores[:19]) is None


class Convolved(torch.nn.Module):
    """A network whose last layer is a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 5, 8)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(pixels).flatten(1)
        return logits


def test_a_network_without_features_gives_none(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    shape = InputShape(image_size=8, channels=1, classes=5)
    export_onnx(Convolved(), path, shape=shape, mean=[0.5], std=[0.25])
    assert not additions.give_features(path, tmp_path / "copy.onnx")
    assert list(tmp_path.iterdir()) == [path]
    assert Artifact.load(path).answers(np.zeros((1, 1, 8, 8), dtype=np.uint8))[1] is None
