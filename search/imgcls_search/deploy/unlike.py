"""How unlike the training's pictures a picture is: the distance of its features from theirs.

The features are what the last layer of a network takes. Their spread is described by a Gaussian, of which the
directions of largest variance are kept and the others have one variance together (probabilistic principal components,
Tipping and Bishop 1999); the distance is the squared Mahalanobis distance from its mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Score = Literal["feature_distance", "largest_probability"]
SCORES: tuple[Score, ...] = ("feature_distance", "largest_probability")
"""The second is 1 less the largest probability, for files whose last layer takes no features."""

FALSE_ALARMS = 0.05
"""Share of the validation images that the threshold calls unlike."""

FEWEST_IMAGES = 20
"""On fewer, that share is less than one image."""

MOST_TRAINING_IMAGES = 2000
MOST_MACS = 2e11
"""Multiply-accumulates that may be spent on them, some 20 seconds of a core, while `LEAST_LOOKED_AT` are looked at."""

LEAST_LOOKED_AT = 300
FEWEST_TRAINING_IMAGES = 50
DIRECTIONS = 64
SMALLEST_VARIANCE = 0.01
"""Of the mean: features that are always the same have none, and a rare image would be infinitely far."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Spread:
    """Where the features of the training's pictures are."""

    mean: Floats
    """[D]."""

    directions: Floats
    """Of largest variance, orthonormal [D, K]."""

    deviations: Floats
    """Along them [K]."""

    rest: float
    """The deviation along any other direction."""

    def distance(self, features: npt.NDArray[Any]) -> Floats:
        """Return the squared distance [N] of features [N, D]."""
        away = features.astype(np.float64) - self.mean
        along = away @ self.directions
        beyond = away - along @ self.directions.T
        found: Floats = ((along / self.deviations) ** 2).sum(axis=1) + ((beyond / self.rest) ** 2).sum(axis=1)
        return found


def fit(features: npt.NDArray[Any]) -> Spread | None:
    """Return the spread of features [N, D], None where they are too few or all alike."""
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
    """Return the largest variances [K] of centred values [N, D], the largest first, and their directions [D, K].

    They are those of a singular value decomposition, which would compute all of them in many times the seconds.
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
    """Return 1 less the largest probability [N] of probabilities [N, classes]."""
    found: Floats = 1 - probabilities.astype(np.float64).max(axis=1)
    return found


def threshold(scores: npt.NDArray[Any]) -> float | None:
    """Return the score above which at most `FALSE_ALARMS` of validation images are; None where they are too few."""
    if len(scores) < FEWEST_IMAGES:
        return None
    return float(np.quantile(scores.astype(np.float64), 1 - FALSE_ALARMS, method="higher"))
