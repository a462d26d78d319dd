"""Intervals of scores from sampling the images, and the scores of a model that ignores the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from imgcls_search.costs import Costs
from imgcls_search.jobs.evaluation import Evaluation
from imgcls_search.training.metrics import Wanted, score

RESAMPLES, LEAST_RESAMPLES = 200, 40
"""Number of resamples of the images for an interval of any metric, and with very many images and labels."""

CELLS = 100_000_000
"""Images times labels that all resamples together score: more take minutes."""

Score = Callable[[Any], float]
"""Scores the images at some indices."""


def interval_of(found: Evaluation, metric: str) -> tuple[float, float]:
    """Return the 95 % interval of an evaluation's metric from sampling its images."""
    return _interval(lambda chosen: _measured(found, metric, chosen), found.labels)


def interval_of_mean(trainings: Sequence[Evaluation], metric: str) -> tuple[float, float]:
    """Return the 95 % interval of the mean over several trainings from sampling their images."""

    def mean(chosen: Any) -> float:
        return float(np.mean([_measured(found, metric, chosen) for found in trainings]))

    return _interval(mean, trainings[0].labels)


def _interval(measure: Score, labels: Any) -> tuple[float, float]:
    """Return the bootstrap interval of a score: the middle 95 % over `RESAMPLES` resamples of the images."""
    stream, count = np.random.default_rng(0), len(labels)
    resamples = int(np.clip(CELLS // labels.size, LEAST_RESAMPLES, RESAMPLES))
    values = [measure(stream.integers(0, count, count)) for _ in range(resamples)]
    values = [value for value in values if np.isfinite(value)]
    if not values:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def interval_of_difference(
    first: Evaluation, second: Evaluation, metric: str, stated: Costs | None = None
) -> tuple[float, float]:
    """Return the 95 % interval of the first's metric minus the second's, both on the same resampled images.

    `stated` are the costs of decisions, for metrics that need them.
    """
    assert first.names == second.names, "the same images"

    def gap(chosen: Any) -> float:
        return _measured(first, metric, chosen, stated) - _measured(second, metric, chosen, stated)

    return _interval(gap, first.labels)


def _measured(found: Evaluation, metric: str, chosen: Any, stated: Costs | None = None) -> float:
    # Logits whose softmax or sigmoid is these probabilities.
    p = np.clip(found.probabilities[chosen].astype(np.float64), 1e-9, 1 - 1e-9)
    logits = np.log(p) if found.thresholds is None else np.log(p / (1 - p))
    wanted = Wanted(classes=found.classes, named=(metric,), costs=stated, thresholds=found.thresholds)
    measured = score(logits.astype(np.float32), found.labels[chosen], wanted)
    return float(measured.get(metric, float("nan")))


def constant_scores(counts: Any, total: int, labels: Any, classes: Sequence[str], metric: str) -> dict[str, float]:
    """Return a metric, and the accuracy, of always predicting the frequencies of the classes.

    `counts` are the images of each class among `total`; `labels` [N] or [N, C] are those of the scored images.
    """
    share = np.clip(np.asarray(counts) / max(1, total), 1e-6, 1 - 1e-6)
    several = labels.ndim == 2
    logits = np.log(share / (1 - share)) if several else np.log(share)
    wanted = Wanted(classes=tuple(classes), named=(metric,), thresholds=(0.5,) * len(classes) if several else None)
    measured = score(np.tile(logits.astype(np.float32), (len(labels), 1)), labels, wanted)
    return {name: float(measured[name]) for name in dict.fromkeys((metric, "accuracy")) if name in measured}
