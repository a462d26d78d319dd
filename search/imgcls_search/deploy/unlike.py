"""How unlike the training images an image is: the distance of its features from theirs.

The features are the input of a network's last layer. A Gaussian describes their spread: it keeps the directions of
largest variance, and all other directions share one variance (probabilistic principal components, Tipping and Bishop
1999). The distance is the squared Mahalanobis distance from its mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Score = Literal["feature_distance", "largest_probability"]
SCORES: tuple[Score, ...] = ("feature_distance", "largest_probability")
"""The second is 1 minus the largest probability, for files without a linear last layer."""

FALSE_ALARMS = 0.05
"""Share of the validation images above the threshold."""

FEWEST_IMAGES = 20
"""With fewer images, that share is less than one image."""

MOST_TRAINING_IMAGES = 2000
MOST_MACS = 2e11
"""Multiply-accumulates to spend on them, some 20 seconds of a core; at least `LEAST_LOOKED_AT` images are used."""

LEAST_LOOKED_AT = 300
FEWEST_TRAINING_IMAGES = 50
DIRECTIONS = 64
SMALLEST_VARIANCE = 0.01
"""Relative to the mean variance: without a floor, constant features would make a rare image infinitely far."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Spread:
    """The distribution of the training images' features."""

    mean: Floats
    """[D]."""

    directions: Floats
    """Directions of largest variance, orthonormal [D, K]."""

    deviations: Floats
    """Deviations along these directions [K]."""

    rest: float
    """The deviation in any other direction."""

    def distance(self, features: npt.NDArray[Any]) -> Floats:
        """Return the squared distances [N] of features [N, D]."""
        away = features.astype(np.float64) - self.mean
        along = away @ self.directions
        beyond = away - along @ self.directions.T
        found: Floats = ((along / self.deviations) ** 2).sum(axis=1) + ((beyond / self.rest) ** 2).sum(axis=1)
        return found


def fit(features: npt.NDArray[Any]) -> Spread | None:
    """Return the spread of features [N, D], None if they are too few or all equal."""
    values = features.astype(np.float64)
    if len(values) < FEWEST_TRAINING_IMAGES or values.shape[1] < 2:
        return None
    mean = values.mean(axis=0)
    values -= mean
    total = float((values**2).sum()) / len(values)
    if not np.isfinite(total) or total <= 0:
        return None
    count = min(DIRECTIONS, values.shape[1] - 1, len(values) // 2)
    variances, directions = _largest(values, count)
    others = (total - variances.sum()) / (values.shape[1] - count)
    rest = max(others, SMALLEST_VARIANCE * total / values.shape[1])
    return Spread(
        mean=mean,
        directions=directions,
        deviations=np.sqrt(np.maximum(variances, rest)),
        rest=float(np.sqrt(rest)),
    )


def _largest(values: Floats, count: int) -> tuple[Floats, Floats]:
    """Return the largest variances [K] of centred values [N, D], in descending order, and their directions [D, K].

    A singular value decomposition gives the same, but computes all of them and takes many times as long.
    """
    from scipy.linalg import eigh

    is_wide = values.shape[1] > len(values)
    squares = values @ values.T if is_wide else values.T @ values
    size = len(squares)
    found, vectors = eigh(squares / len(values), driver="evr", subset_by_index=[size - count, size - 1])
    variances, vectors = np.maximum(found[::-1], 0.0), vectors[:, ::-1]
    if is_wide:
        vectors = values.T @ vectors / np.sqrt(np.maximum(variances * len(values), np.finfo(np.float64).tiny))
    return variances, vectors


def doubt(probabilities: npt.NDArray[Any]) -> Floats:
    """Return 1 minus the largest probability [N], for probabilities [N, classes]."""
    found: Floats = 1 - probabilities.astype(np.float64).max(axis=1)
    return found


def threshold(scores: npt.NDArray[Any]) -> float | None:
    """Return the score that at most `FALSE_ALARMS` of the validation images exceed; None if they are too few."""
    if len(scores) < FEWEST_IMAGES:
        return None
    return float(np.quantile(scores.astype(np.float64), 1 - FALSE_ALARMS, method="higher"))
