"""Metrics of how well probabilities rank the images of a class above the others, independent of thresholds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

CELLS = 4_000_000
"""Images times classes at a time: a few arrays of that many numbers fit any memory, ten of 100,000 x 1,500 do not."""


def by_block(measure: Callable[[Array, Array], Array], probabilities: Array, are_of: Array) -> Array:
    """Apply a measure of each class, which are both columns, to a few classes at a time."""
    images, classes = probabilities.shape
    step = max(1, CELLS // max(images, 1))
    blocks = [slice(start, start + step) for start in range(0, max(classes, 1), step)]
    return np.concatenate([measure(probabilities[:, block], are_of[:, block]) for block in blocks])


def average_precisions(probabilities: Array, are_of: Array) -> Array:
    """Return the average precision of each class: the mean, over its images, of the precision at the image's rank.

    `probabilities` and `are_of` (whether an image is of a class) are [N, classes]; each class has an image.
    """
    return by_block(_average_precisions, probabilities, are_of)


def _average_precisions(probabilities: Array, are_of: Array) -> Array:
    order = np.argsort(-probabilities, axis=0, kind="stable")
    ordered = np.take_along_axis(probabilities, order, axis=0)
    hits = np.take_along_axis(are_of, order, axis=0)
    count = len(order)
    # Images of equal probability share one threshold: each gets the precision at the last of them.
    is_last = np.vstack([ordered[1:] != ordered[:-1], np.ones((1, ordered.shape[1]), dtype=bool)])
    last = np.where(is_last, np.arange(count)[:, None], count)
    last = np.minimum.accumulate(last[::-1], axis=0)[::-1]
    precision = np.cumsum(hits, axis=0) / np.arange(1, count + 1)[:, None]
    seen = np.take_along_axis(precision, last, axis=0)
    found: Array = (seen * hits).sum(axis=0) / hits.sum(axis=0)
    return found


def roc_areas(probabilities: Array, are_of: Array) -> Array:
    """Return for each class the share of pairs in the right order; a tie counts half (Mann and Whitney 1947).

    `probabilities` and `are_of` (whether an image is of a class) are [N, classes]; each class has some images, not all.
    """
    return by_block(_roc_areas, probabilities, are_of)


def _roc_areas(probabilities: Array, are_of: Array) -> Array:
    positive = are_of.sum(axis=0)
    ranks = np.stack([_ranks(column) for column in probabilities.T], axis=1)
    mine = np.where(are_of, ranks, 0).sum(axis=0)
    areas: Array = (mine - positive * (positive + 1) / 2) / (positive * (len(are_of) - positive))
    return areas


def _ranks(values: Array) -> Array:
    """Return the rank of each value, from 1; equal values share their mean rank.

    SciPy's rankdata gives the same, but takes a second to import in every worker.
    """
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks: Array = (last - (counts - 1) / 2)[which.reshape(-1)]
    return ranks


def sensitivity(probabilities: Array, is_class: Array, least: float) -> float | None:
    """Return the largest recall of a class over thresholds of its probability [N] with at least a specificity of
    `least`."""
    from sklearn.metrics import roc_curve

    if is_class.all() or not is_class.any():
        return None
    false_positives, true_positives, _ = roc_curve(is_class, probabilities, drop_intermediate=False)
    # These are shares of whole images: treat values that differ by rounding as equal.
    return float(true_positives[1 - false_positives >= least - 1e-9].max())
