"""Temperatures that calibrate probabilities, and the calibration error (Guo et al. 2017).

Logits [N, classes] are divided by one temperature; with several labels per image, each label has its own. A temperature
does not change the order of an image's classes, so the predicted class stays the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from imgcls_search.probabilities import probabilities_of

Array = np.ndarray[Any, Any]

LOWEST, HIGHEST = 0.05, 20.0
"""Outside these bounds a temperature only fits images that are all right, or scores without information."""

FEWEST_IMAGES = 50
"""With fewer images, the gain of a temperature is within chance."""

FEWEST_OF_LABEL = 10
"""A label needs this many images with it, and as many without it, to get a temperature."""

PARTS = 5
"""Cross-fitting folds: each is held out once while a temperature is fitted on the others."""

BINS = 15
"""Bins with equal numbers of images."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How well probabilities match the labels."""

    loss: float
    """Log loss in nats; with several labels per image, the mean over labels."""

    error: float
    """Expected calibration error over `BINS` bins with equal numbers of images."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Temperatures, and their effect on images that they were not fitted on."""

    temperatures: tuple[float, ...]
    """One, or one per label; 1 where no temperature is kept."""

    before: Quality | None
    """Quality without temperatures; None if there are no images."""

    after: Quality | None
    """Quality with temperatures fitted on other images; None if no temperature is kept."""

    images: int
    reason: str = ""
    """Why no temperature is kept."""

    @property
    def is_kept(self) -> bool:
        """Whether any temperature differs from 1."""
        return any(temperature != 1 for temperature in self.temperatures)

    def applied(self, logits: Array) -> Array:
        """Return logits [N, classes] divided by the temperatures."""
        divided: Array = logits / np.array(self.temperatures)
        return divided

    def threshold(self, label: int, probability: float) -> float:
        """Return the threshold of a label that gives the same decisions after calibration."""
        temperature = self.temperatures[label] if len(self.temperatures) > 1 else self.temperatures[0]
        if temperature == 1 or not 0 < probability < 1:
            return probability
        return 1 / (1 + math.exp(-math.log(probability / (1 - probability)) / temperature))


def calibrate(logits: Array, labels: Array) -> Calibration:
    """Fit temperatures on images [N, classes], and keep each only if it lowers the log loss on held-out images.

    `labels` are class numbers [N], or 0 or 1 [N, classes] with several labels per image.
    """
    if labels.ndim == 2:
        return _of_labels(logits.astype(np.float64), labels)
    if len(labels) < FEWEST_IMAGES:
        before = quality(logits, labels) if len(labels) else None
        return none(f"{len(labels)} validation images are too few: {FEWEST_IMAGES} at least", before, len(labels))
    before = quality(logits, labels)
    temperature, held_out = _cross_fitted(logits.astype(np.float64), labels, _class_loss)
    if temperature is None:
        return none("no temperature is the best on the validation images", before, len(labels))
    after = quality(held_out, labels)
    if not after.loss < before.loss:
        return none("no temperature lowers the log loss on held-out images", before, len(labels))
    return Calibration(temperatures=(temperature,), before=before, after=after, images=len(labels))


def none(reason: str, before: Quality | None = None, images: int = 0, labels: int = 1) -> Calibration:
    """Return a calibration that changes nothing, with the reason."""
    return Calibration(temperatures=(1.0,) * labels, before=before, after=None, images=images, reason=reason)


def _of_labels(logits: Array, labels: Array) -> Calibration:
    before = quality(logits, labels) if len(labels) else None
    temperatures: list[float] = []
    held_out = logits.copy()
    for number in range(labels.shape[1]):
        column, truth = logits[:, number : number + 1], labels[:, number]
        support = int(truth.sum())
        temperature = None
        if len(truth) >= FEWEST_IMAGES and FEWEST_OF_LABEL <= support <= len(truth) - FEWEST_OF_LABEL:
            temperature, other = _cross_fitted(column, truth, _label_loss)
            if temperature is not None and _label_loss(other, truth, 1.0) < _label_loss(column, truth, 1.0):
                held_out[:, number] = other[:, 0]
            else:
                temperature = None
        temperatures.append(1.0 if temperature is None else temperature)
    if all(temperature == 1 for temperature in temperatures):
        fewest = f"{FEWEST_IMAGES} images, {FEWEST_OF_LABEL} with and {FEWEST_OF_LABEL} without the label"
        reason = f"no label has a temperature that lowers the log loss on held-out images (it needs {fewest})"
        return none(reason, before, len(labels), labels.shape[1])
    return Calibration(
        temperatures=tuple(temperatures), before=before, after=quality(held_out, labels), images=len(labels)
    )


Loss = Callable[[Array, Array, float], float]
"""Returns the log loss of logits [N, classes] divided by a temperature, with labels [N]."""


def _cross_fitted(logits: Array, labels: Array, loss: Loss) -> tuple[float | None, Array]:
    """Return the temperature for all images, and each image's logits divided by the temperature of the other folds.

    The temperature is None if the whole set or any fold has no best temperature.
    """
    temperature = fit_temperature(logits, labels, loss)
    held_out = logits.astype(np.float64)
    for part in _parts(labels):
        found = fit_temperature(logits[~part], labels[~part], loss)
        if temperature is None or found is None:
            return None, logits
        held_out[part] /= found
    return temperature, held_out


def _parts(labels: Array) -> Iterator[Array]:
    """Yield a mask of the held-out images of each fold; classes are spread evenly, and folds are always the same."""
    drawn = np.random.default_rng(0).permutation(len(labels))
    order = drawn[np.argsort(labels[drawn], kind="stable")]
    number = np.empty(len(labels), dtype=np.int64)
    number[order] = np.arange(len(labels)) % PARTS
    for part in range(PARTS):
        yield number == part


def fit_temperature(logits: Array, labels: Array, loss: Loss | None = None) -> float | None:
    """Return the temperature with the lowest log loss on images, None if no minimum is between the bounds.

    The loss is convex in 1 / temperature, so it has at most one minimum. If all images are right, the loss keeps
    falling towards temperature 0; if scores are worse than chance, it falls towards infinity and on into negative
    temperatures.
    """
    from scipy.optimize import minimize_scalar

    measure = loss or (_class_loss if labels.ndim == 1 else _label_loss)
    bounds = (math.log(LOWEST), math.log(HIGHEST))
    found = minimize_scalar(
        lambda power: measure(logits, labels, math.exp(power)),
        bounds=bounds,
        method="bounded",
        options={"xatol": 1e-5},
    )
    if not math.isfinite(found.fun) or min(abs(found.x - bound) for bound in bounds) < 1e-3:
        return None
    return math.exp(float(found.x))


def _class_loss(logits: Array, labels: Array, temperature: float) -> float:
    from scipy.special import logsumexp

    scaled = logits.astype(np.float64) / temperature
    return float((logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels]).mean())


def _label_loss(logits: Array, labels: Array, temperature: float) -> float:
    scaled = logits.astype(np.float64) / temperature
    return float((np.logaddexp(0, scaled) - labels.reshape(scaled.shape) * scaled).mean())


def quality(logits: Array, labels: Array) -> Quality:
    """Return the log loss and the calibration error of logits [N, classes]."""
    loss = (_label_loss if labels.ndim == 2 else _class_loss)(logits, labels, 1.0)
    return Quality(loss=loss, error=calibration_error(*confidences(probabilities(logits, labels), labels)))


def probabilities(logits: Array, labels: Array) -> Array:
    """Return probabilities [N, classes], for one label or several labels per image."""
    return probabilities_of(logits, several=labels.ndim == 2)


def confidences(probabilities: Array, labels: Array) -> tuple[Array, Array]:
    """Return the confidence of each prediction, and whether it is right.

    With one class per image, each image has one prediction: its likeliest class. With several labels, each label of
    each image has one: that the image has the label, with its probability.
    """
    if labels.ndim == 2:
        return probabilities.ravel(), labels.ravel().astype(bool)
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == labels


def bins(confidence: Array, right: Array) -> list[tuple[int, float, float]]:
    """Return the size, mean confidence and share right of `BINS` bins with equal numbers of predictions, from low to
    high."""
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, BINS) if len(part)]
    return [(len(part), float(confidence[part].mean()), float(right[part].mean())) for part in parts]


def calibration_error(confidence: Array, right: Array) -> float:
    """Return the expected calibration error over `BINS` bins with equal numbers of predictions."""
    if not len(confidence):
        return 0.0
    return sum(count * abs(share - mean) for count, mean, share in bins(confidence, right)) / len(confidence)
