"""Which predictions to trust: by confidence, the share that is answered and the share of these that is right."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

DOUBT = 0.05
"""Probability that an exact lower bound is above the true share: a one-sided 95 % bound."""

LEVELS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Thresholds of the standard table."""

ROUNDING = 5e-7
"""Relative margin below the confidence that a threshold comes from, for sums that round in another order."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The images that are answered when the less certain ones are refused."""

    threshold: float
    """Images with at least this confidence are answered."""

    answered: int
    images: int
    right: int

    @property
    def share(self) -> float:
        """The share of images that are answered."""
        return self.answered / self.images

    @property
    def lower(self) -> float:
        """The lower 95 % bound of the share that is right among the answered."""
        return lower_bound(self.right, self.answered)


def lower_bound(right: int, count: int) -> float:
    """Return the exact lower 95 % bound of a share (Clopper and Pearson 1934, one-sided); 0 if none is right."""
    from scipy.stats import beta

    return float(beta.ppf(DOUBT, right, count - right + 1)) if right else 0.0


def fewest_images(target: float) -> int:
    """Return how many images, all right, a lower bound needs to reach a target."""
    count = max(1, math.ceil(math.log(DOUBT) / math.log(target)) - 1)
    while lower_bound(count, count) < target:
        count += 1
    return count


def answered_from(confidence: Array, right: Array, threshold: float) -> Answered:
    """Return the answered images at a confidence threshold."""
    taken = confidence >= threshold
    return Answered(
        threshold=threshold, answered=int(taken.sum()), images=len(confidence), right=int(right[taken].sum())
    )


def table(confidence: Array, right: Array) -> list[Answered]:
    """Return the answered images at each of the `LEVELS`."""
    return [answered_from(confidence, right, level) for level in LEVELS]


def smallest_threshold(confidence: Array, right: Array, target: float) -> Answered | None:
    """Return the smallest threshold at which the lower bound of the share right reaches a target, None if there is
    none.

    Images of equal confidence are answered together.
    """
    levels, places = np.unique(confidence, return_inverse=True)
    counts = np.bincount(places, minlength=len(levels))[::-1].cumsum()[::-1]
    hits = np.bincount(places, weights=right, minlength=len(levels))[::-1].cumsum()[::-1]
    for number, level in enumerate(levels.tolist()):
        if lower_bound(int(hits[number]), int(counts[number])) >= target:
            below = float(levels[number - 1]) if number else 0.0
            return answered_from(confidence, right, max((below + level) / 2, level * (1 - ROUNDING)))
    return None


def risk_coverage(confidence: Array, right: Array) -> tuple[Array, Array]:
    """Return the share answered and the share wrong among these, most confident first (El-Yaniv and Wiener 2010).

    Images of equal confidence are answered together.
    """
    order = np.argsort(-confidence, kind="stable")
    wrong = (~right.astype(bool))[order].cumsum()
    count = np.arange(1, len(order) + 1)
    is_last = np.append(np.diff(confidence[order]) != 0, True)[: len(order)]
    return count[is_last] / len(order), wrong[is_last] / count[is_last]
