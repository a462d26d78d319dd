"""Temperatures: those of simulated images are found again, and none is kept that does not help."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from imgcls_search.probabilities import sigmoid, softmax
from imgcls_search.training.calibration import (
    FEWEST_IMAGES,
    calibrate,
    calibration_error,
    confidences,
    fit_temperature,
    quality,
)


def simulated(temperature: float, count: int, classes: int = 10, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax over a temperature is the very chance of each class, and classes drawn so."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(0, 2, (count, classes))
    chances = softmax(honest)
    labels = (chances.cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    return (honest * temperature).astype(np.float32), labels


@pytest.mark.parametrize("temperature", [0.5, 2.0, 4.0])
def test_a_true_temperature_is_found_again(temperature: float) -> None:
    logits, labels = simulated(temperature, 50_000)
    found = calibrate(logits, labels)
    assert found.is_kept
    assert found.temperatures[0] == pytest.approx(temperature, rel=0.02)
    other, classes = simulated(temperature, 50_000, seed=1)
    before = calibration_error(*confidences(softmax(other), classes))
    after = calibration_error(*confidences(softmax(found.applied(other)), classes))
    assert after < 0.01 < before
    assert found.after is not None
    assert found.before is not None
    assert found.after.error < 0.01
    assert found.after.loss < found.before.loss


def test_the_fit_is_that_of_torch() -> None:
    """Against LBFGS on torch's cross entropy, as in the paper's own code."""
    logits, labels = simulated(2.5, 2_000, classes=5)
    log = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(
            torch.from_numpy(logits).double() / log.exp(), torch.from_numpy(labels)
        )
        value.backward()
        return value

    optimizer.step(loss)
    assert fit_temperature(logits, labels) == pytest.approx(float(log.detach().exp()), rel=1e-3)


def test_each_label_has_a_temperature_of_its_own() -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 2, (20_000, 4))
    labels = (sigmoid(honest) > rng.random(honest.shape)).astype(np.uint8)
    labels[:, 3] = 0
    labels[:3, 3] = 1
    true = np.array([0.5, 2.0, 4.0, 3.0])
    found = calibrate((honest * true).astype(np.float32), labels)
    assert found.temperatures[:3] == pytest.approx(true[:3], rel=0.03)
    # Three images have it: nothing to fit on.
    assert found.temperatures[3] == 1
    # Thresholds decide as before.
    for number in range(4):
        cut = found.threshold(number, 0.3)
        said = sigmoid(found.applied(honest * true))[:, number] >= cut
        assert (said == (sigmoid(honest * true)[:, number] >= 0.3)).all()


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("all right", "no temperature is the best"),
        ("worse than chance", "no temperature is the best"),
        ("honest already", "no temperature lowers"),
        ("too few", f"{FEWEST_IMAGES - 1} validation images are too few"),
        ("none", "0 validation images are too few"),
    ],
)
def test_a_temperature_that_does_not_help_is_not_kept(case: str, why: str) -> None:
    logits, labels = simulated(1.0, 400, classes=4, seed=4)
    match case:
        case "all right":
            labels = logits.argmax(axis=1)
        case "worse than chance":
            labels = logits.argmin(axis=1)
        case "too few":
            logits, labels = simulated(4.0, FEWEST_IMAGES - 1)
        case "none":
            logits, labels = logits[:0], labels[:0]
    found = calibrate(logits, labels)
    assert not found.is_kept
    assert found.temperatures == (1.0,)
    assert found.after is None
    assert why in found.reason


def test_the_error_is_that_of_equally_many_images_a_bin() -> None:
    confidence = np.linspace(0.2, 0.9, 150)
    right = np.arange(150) % 2 == 0
    expected = np.mean([abs(confidence[k : k + 10].mean() - 0.5) for k in range(0, 150, 10)])
    assert calibration_error(confidence, right) == pytest.approx(expected)
    assert calibration_error(confidence[:3], right[:3]) == pytest.approx(np.abs(confidence[:3] - right[:3]).mean())


def test_quality_is_the_loss_that_epochs_show() -> None:
    from imgcls_search.training.metrics import score

    logits, labels = simulated(2.0, 300)
    assert quality(logits, labels).loss == pytest.approx(score(logits, labels)["loss"])
    several = (np.random.default_rng(0).random((300, 10)) < 0.4).astype(np.uint8)
    assert quality(logits, several).loss == pytest.approx(score(logits, several)["loss"])
