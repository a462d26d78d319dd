"""What a model is measured by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imgcls_search.measures import ALWAYS, NAMED, SUPPORT, class_of, specificity

METRICS: Mapping[str, str] = {**ALWAYS, **NAMED}
"""Metrics of one evaluation, each with one sentence."""

CALIBRATION_BINS = 15
"""Bins of equal width, as in Guo et al. 2017."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What an evaluation is to measure beside what is always measured."""

    classes: tuple[str, ...] = ()
    """Names of the classes, by which metrics of single ones are called."""

    named: tuple[str, ...] = ()
    """Metrics that an objective or a limit names."""

    is_full: bool = False
    """Whether to measure all there is, as at the end of a training."""


def score(logits: Array, labels: Array, wanted: Wanted | None = None) -> dict[str, float]:
    """Return every metric that has meaning, from logits [N, classes] and class numbers [N].

    Means over classes are over those that have an image. A metric of one class is left out where that class has no
    image, `roc_auc`, and `sensitivity@...` also where there is no other class.
    """
    from sklearn.metrics import accuracy_score, f1_score, log_loss, top_k_accuracy_score

    classes = np.arange(logits.shape[1])
    predicted = logits.argmax(axis=1)
    probabilities = softmax(logits)
    scores = {
        "accuracy": accuracy_score(labels, predicted),
        "macro_f1": f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0.0),
        "loss": log_loss(labels, probabilities, labels=classes),
    }
    if len(classes) > 5:
        scores["top5_accuracy"] = top_k_accuracy_score(labels, logits, k=5, labels=classes)
    if wanted is not None and (wanted.named or wanted.is_full):
        scores |= _more(probabilities, predicted, labels, wanted)
    return {name: float(value) for name, value in scores.items()}


def _more(probabilities: Array, predicted: Array, labels: Array, wanted: Wanted) -> dict[str, float]:
    """Return what is named, or all there is, of what is not always measured."""
    found: dict[str, float] = {}
    for name in NAMED if wanted.is_full else (name for name in wanted.named if name in NAMED):
        value = _MEASURES[name](probabilities, predicted, labels)
        if value is not None:
            found[name] = value
    of_classes = [name for name in wanted.named if class_of(name) is not None]
    if wanted.is_full or of_classes:
        known = _of_each_class(predicted, labels, wanted.classes)
        found |= {name: value for name, value in known.items() if wanted.is_full or name in of_classes}
    for name in of_classes:
        if name.startswith("sensitivity@"):
            value = _sensitivity(probabilities, labels, wanted.classes.index(class_of(name) or ""), specificity(name))
            if value is not None:
                found[name] = value
    return found


def _of_each_class(predicted: Array, labels: Array, classes: Sequence[str]) -> dict[str, float]:
    """Return precision, recall, F1 and number of images of each class; of one without images that number alone."""
    from sklearn.metrics import precision_recall_fscore_support

    numbers = np.arange(len(classes))
    columns = precision_recall_fscore_support(labels, predicted, labels=numbers, zero_division=0.0)
    found: dict[str, float] = {}
    for name, precision, recall, f1, support in zip(classes, *columns, strict=True):
        if support:
            found |= {f"precision:{name}": precision, f"recall:{name}": recall, f"f1:{name}": f1}
        found[f"{SUPPORT}:{name}"] = support
    return found


def _balanced_accuracy(probabilities: Array, predicted: Array, labels: Array) -> float:
    from sklearn.metrics import recall_score

    # As scikit-learn's `balanced_accuracy_score`, which warns of classes that are predicted and have no image.
    return float(recall_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0.0))


def _roc_auc(probabilities: Array, predicted: Array, labels: Array) -> float | None:
    from sklearn.metrics import roc_auc_score

    present = np.unique(labels)
    if len(present) < 2:
        return None
    return float(roc_auc_score(labels[:, None] == present, probabilities[:, present], average="macro"))


def _average_precision(probabilities: Array, predicted: Array, labels: Array) -> float:
    from sklearn.metrics import average_precision_score

    present = np.unique(labels)
    # A column each: of one column alone scikit-learn would make a binary target.
    return float(np.mean([average_precision_score(labels == k, probabilities[:, k]) for k in present]))


def _mcc(probabilities: Array, predicted: Array, labels: Array) -> float:
    from sklearn.metrics import matthews_corrcoef

    if len(np.unique(np.concatenate([labels, predicted]))) < 2:
        # What scikit-learn says too, with a warning: without a second class nothing correlates.
        return 0.0
    return float(matthews_corrcoef(labels, predicted))


def _kappa(probabilities: Array, predicted: Array, labels: Array) -> float | None:
    from sklearn.metrics import cohen_kappa_score

    if len(np.unique(np.concatenate([labels, predicted]))) < 2:
        # One class, always predicted: chance agrees as well.
        return None
    numbers = np.arange(probabilities.shape[1])
    return float(cohen_kappa_score(labels, predicted, labels=numbers, weights="quadratic"))


def _calibration_error(probabilities: Array, predicted: Array, labels: Array) -> float:
    """Return the expected calibration error (Guo et al. 2017, eq. 3): bins (0, 1/15], (1/15, 2/15] and so on."""
    confidence, right = probabilities.max(axis=1), predicted == labels
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]
    bins = np.digitize(confidence, edges, right=True)
    gaps = np.bincount(bins, weights=right - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(labels))


_MEASURES = {
    "balanced_accuracy": _balanced_accuracy,
    "roc_auc": _roc_auc,
    "average_precision": _average_precision,
    "mcc": _mcc,
    "kappa": _kappa,
    "ece": _calibration_error,
}
"""Functions of probabilities [N, classes], predicted classes [N] and class numbers [N]; None where undefined."""


def _sensitivity(probabilities: Array, labels: Array, number: int, least: float) -> float | None:
    """Return the largest recall of a class over all thresholds of its probability that keep a specificity."""
    from sklearn.metrics import roc_curve

    is_class = labels == number
    if is_class.all() or not is_class.any():
        return None
    false_positives, true_positives, _ = roc_curve(is_class, probabilities[:, number], drop_intermediate=False)
    # Shares of whole images: what differs by rounding alone is equal.
    return float(true_positives[1 - false_positives >= least - 1e-9].max())


def softmax(logits: Array) -> Array:
    """Return probabilities [N, classes], in double precision, from logits [N, classes]."""
    from scipy.special import softmax as along

    probabilities: Array = along(logits.astype(np.float64), axis=1)
    return probabilities
