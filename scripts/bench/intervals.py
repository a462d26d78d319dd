"""Scores of classifiers on the same test images, and their differences, with intervals over images and seeds.

The intervals are bootstrap intervals with two sources of chance: the test images, which are the same for all
classifiers, and the seeds of the trainings, which are independent. Images are resampled jointly for both sides of a
difference, so that an image that is hard for both does not matter. Seeds are resampled for each side separately, since
one side's seed 1 is unrelated to the other's. S - 1 of S seeds are drawn, because the variance of the mean of S draws
is too small by a factor of (S - 1) / S. Scores of seeds also differ because their trainings err on different images;
the resampled images already contain this variance, so it is subtracted from that of the seeds. Student's t widens the
interval for few seeds, with Welch's degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

Array = np.ndarray[Any, Any]
Metric = Literal["accuracy", "macro_f1"]
METRICS: tuple[Metric, ...] = ("accuracy", "macro_f1")
DRAWS = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float
    is_over_seeds: bool
    """False if there is only one seed, so that the interval covers only the choice of images."""


def score(metric: Metric, truth: Array, predicted: Array) -> float:
    """Return the metric of predicted class numbers [images] on all images."""
    return float(_scores(metric, truth, predicted, np.ones((1, len(truth)), np.float32))[0])


def interval(metric: Metric, truth: Array, predicted: Array, seed: int = 0) -> Interval:
    """Return the mean over seeds of the score of predictions [seeds, images]."""
    return _interval(metric, truth, [(1.0, predicted)], seed)


def difference(metric: Metric, truth: Array, one: Array, other: Array, seed: int = 0) -> Interval:
    """Return the mean score of `one` minus that of `other`, on the same images."""
    return _interval(metric, truth, [(1.0, one), (-1.0, other)], seed)


def _interval(metric: Metric, truth: Array, sides: Sequence[tuple[float, Array]], seed: int) -> Interval:
    random = np.random.default_rng(seed)
    images = len(truth)
    weights = random.multinomial(images, np.full(images, 1 / images), size=DRAWS).astype(np.float32)
    everything = np.ones((1, images), np.float32)
    value, drawn = 0.0, np.zeros(DRAWS)
    seed_effects: list[Array] = []
    of_seeds: list[tuple[float, int]] = []
    for sign, predicted in sides:
        seeds = len(predicted)
        observed = np.array([_scores(metric, truth, row, everything)[0] for row in predicted])
        found = np.stack([_scores(metric, truth, row, weights) for row in predicted], axis=1)
        value += sign * float(observed.mean())
        drawn += sign * found.mean(axis=1)
        if seeds > 1:
            variance = float(observed.var(ddof=1))
            of_images = float((found - found.mean(axis=1, keepdims=True)).var(axis=0).sum()) / (seeds - 1)
            share = max(variance - of_images, 0) / variance if variance > 0 else 0.0
            chosen = random.integers(seeds, size=(DRAWS, seeds - 1))
            seed_effects.append(sign * share**0.5 * (observed[chosen].mean(axis=1) - observed.mean()))
            of_seeds.append((share * variance / seeds, seeds - 1))
    of_all_images = float(drawn.var())
    drawn += sum(seed_effects)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    wider = _wider([(of_all_images, images - 1), *of_seeds])
    return Interval(
        value=value,
        low=value + wider * (float(low) - value),
        high=value + wider * (float(high) - value),
        is_over_seeds=all(len(predicted) > 1 for _, predicted in sides),
    )


def _wider(parts: Sequence[tuple[float, int]]) -> float:
    """Return the width of Student's interval / the normal one's, from variances and their degrees of freedom."""
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return 1.0
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in parts)
    tail = (1 + LEVEL) / 2
    return float(stats.t.ppf(tail, freedom) / stats.norm.ppf(tail))


def _scores(metric: Metric, truth: Array, predicted: Array, weights: Array) -> Array:
    """Return the metric of predictions [images] for each row of weights [draws, images]."""
    if metric == "accuracy":
        return weights @ (truth == predicted).astype(np.float32) / weights.sum(axis=1)
    classes = int(max(truth.max(), predicted.max())) + 1
    rows = np.eye(classes, dtype=np.float32)
    is_true, is_predicted = rows[truth], rows[predicted]
    right, given, named = (weights @ part for part in (is_true * is_predicted, is_true, is_predicted))
    # As everywhere in this project, the mean is over classes that have an image.
    has_images = given > 0
    f1 = np.where(has_images, 2 * right / np.maximum(given + named, 1), 0)
    return np.asarray(f1.sum(axis=1) / has_images.sum(axis=1))
