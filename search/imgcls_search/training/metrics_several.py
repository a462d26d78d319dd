"""Metrics of a model with several labels per image, and the thresholds that decide which labels an image has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from imgcls_search.measures import SUPPORT, THRESHOLD, class_of, specificity
from imgcls_search.probabilities import sigmoid
from imgcls_search.training import custom_metrics
from imgcls_search.training.ranking import average_precisions, by_block, roc_areas, sensitivity

MIDDLE = 0.5
"""The threshold of a label that no image has."""

Array = np.ndarray[Any, Any]


def score(
    logits: Array,
    labels: Array,
    *,
    classes: Sequence[str] = (),
    named: Sequence[str] = (),
    is_full: bool = False,
    thresholds: Sequence[float] | None = None,
) -> dict[str, float]:
    """Return every metric that is defined, from logits [N, labels] and labels, 0 or 1 [N, labels].

    Without `thresholds`, they are chosen on these same images. Means over labels skip labels without images.
    """
    probabilities = sigmoid(logits)
    truth = labels.astype(bool)
    cuts = choose_thresholds(probabilities, truth) if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    taken = probabilities >= cuts
    right, support, predicted = ((part).sum(axis=0) for part in (taken & truth, truth, taken))
    present = support > 0
    precisions = average_precisions(probabilities[:, present], truth[:, present])
    doubled = logits.astype(np.float64)
    scores: dict[str, float] = {
        "macro_f1": np.mean(2 * right[present] / (support + predicted)[present]) if present.any() else 0.0,
        "micro_f1": 2 * right.sum() / max(support.sum() + predicted.sum(), 1),
        "subset_accuracy": (taken == truth).all(axis=1).mean(),
        "loss": (np.logaddexp(0, doubled) - truth * doubled).mean(),
    }
    if present.any():
        scores = {"average_precision": precisions.mean(), **scores}
    partly = present & (support < len(truth))
    if (is_full or "roc_auc" in named) and partly.any():
        scores["roc_auc"] = roc_areas(probabilities[:, partly], truth[:, partly]).mean()
    of_classes = [name for name in named if class_of(name) is not None]
    if is_full or of_classes:
        each = np.zeros(len(support))
        each[present] = precisions
        known = _of_each_label(classes, right, support, predicted, each, cuts)
        scores |= {name: value for name, value in known.items() if is_full or name in of_classes}
    for name in named:
        if custom_metrics.is_custom(name):
            scores[name] = custom_metrics.measure(name, probabilities, labels.astype(np.int64))
        elif name.startswith("sensitivity@"):
            number = list(classes).index(class_of(name) or "")
            value = sensitivity(probabilities[:, number], truth[:, number], specificity(name))
            if value is not None:
                scores[name] = value
    return {name: float(value) for name, value in scores.items()}


def _of_each_label(
    classes: Sequence[str], right: Array, support: Array, predicted: Array, precisions: Array, cuts: Array
) -> dict[str, float]:
    """Return the metrics of each label; for a label without images, its threshold and their number alone."""
    found: dict[str, float] = {}
    for number, name in enumerate(classes):
        if support[number]:
            found[f"precision:{name}"] = right[number] / max(predicted[number], 1)
            found[f"recall:{name}"] = right[number] / support[number]
            found[f"f1:{name}"] = 2 * right[number] / (support[number] + predicted[number])
            found[f"average_precision:{name}"] = precisions[number]
        found[f"{THRESHOLD}:{name}"] = cuts[number]
        found[f"{SUPPORT}:{name}"] = support[number]
    return found


def choose_thresholds(probabilities: Array, truth: Array) -> Array:
    """Return for each label the threshold with the largest F1 on some images, both [N, labels].

    All thresholds between two neighbouring probabilities decide alike: use 0.5 if it is between them, else the middle.
    Of equally good thresholds, take the nearest to 0.5; a label that no image has gets 0.5.
    """
    return by_block(_choose_thresholds, probabilities, truth)


def _choose_thresholds(probabilities: Array, truth: Array) -> Array:
    count, labels = probabilities.shape
    order = np.argsort(-probabilities, axis=0, kind="stable")
    upper = np.take_along_axis(probabilities, order, axis=0)
    hits = np.cumsum(np.take_along_axis(truth, order, axis=0), axis=0)
    lower = np.vstack([upper[1:], np.zeros((1, labels))])
    total = truth.sum(axis=0)
    f1 = 2 * hits / (np.arange(1, count + 1)[:, None] + total)
    # Images of equal probability cannot be separated.
    f1[lower >= upper] = -1.0
    middle = (lower + upper) / 2
    middle = np.where(middle > lower, middle, upper)
    found = np.where((lower < MIDDLE) & (upper >= MIDDLE), MIDDLE, middle)
    distance = np.where(f1 >= f1.max(axis=0), np.abs(found - MIDDLE), np.inf)
    chosen = np.take_along_axis(found, distance.argmin(axis=0)[None], axis=0)[0]
    thresholds: Array = np.where(total > 0, chosen, MIDDLE)
    return thresholds
