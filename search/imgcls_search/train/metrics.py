"""What a model is measured by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imgcls_search import costs
from imgcls_search.measures import ALWAYS, COSTED, NAMED, SUPPORT, class_of, specificity
from imgcls_search.train import custom_metrics

METRICS: Mapping[str, str] = {**ALWAYS, **NAMED, **COSTED}
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

    costs: costs.Costs | None = None
    """What decisions cost, by which `cost` and `decision_accuracy` are measured."""

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
    shown = _Shown(probabilities, predicted, labels)
    found: dict[str, float] = {}
    for name in NAMED if wanted.is_full else (name for name in wanted.named if name in NAMED):
        value = _MEASURES[name](shown)
        if value is not None:
            found[name] = value
    found |= _by_costs(shown, wanted)
    of_classes = [name for name in wanted.named if class_of(name) is not None]
    if wanted.is_full or of_classes:
        known = _of_each_class(shown, wanted.classes)
        found |= {name: value for name, value in known.items() if wanted.is_full or name in of_classes}
    for name in wanted.named:
        if name in custom_metrics.installed():
            found[name] = custom_metrics.measure(name, probabilities, labels)
    for name in of_classes:
        if name.startswith("sensitivity@"):
            value = _sensitivity(probabilities, labels, wanted.classes.index(class_of(name) or ""), specificity(name))
            if value is not None:
                found[name] = value
    return found


def _by_costs(shown: _Shown, wanted: Wanted) -> dict[str, float]:
    """Return what the decisions by costs cost, and how many are right, as far as it is wanted."""
    if wanted.costs is None or not (wanted.is_full or COSTED.keys() & set(wanted.named)):
        return {}
    matrix = costs.matrix(wanted.costs, wanted.classes)
    decided = costs.decided(shown.probabilities, matrix)
    found = {
        "cost": float(matrix[shown.labels, decided].mean()),
        "decision_accuracy": float((decided == shown.labels).mean()),
    }
    return {name: value for name, value in found.items() if wanted.is_full or name in wanted.named}


class _Shown:
    """What a model says of images, and how often it takes one class for another.

    The measures of it are a few sums over all classes at once: scikit-learn's, to which the tests hold them, took
    100 ms instead of 4 on 216 images of 10 classes, which a search of short trainings would feel.
    """

    def __init__(self, probabilities: Array, predicted: Array, labels: Array) -> None:
        self.probabilities, self.predicted, self.labels = probabilities, predicted, labels
        classes = probabilities.shape[1]
        counts = np.bincount(labels * classes + predicted, minlength=classes**2)
        self.confusion = counts.reshape(classes, classes)
        """Images of the class of the row that are taken for that of the column."""
        self.of_class, self.taken_for = self.confusion.sum(axis=1), self.confusion.sum(axis=0)
        self.right = np.diag(self.confusion)
        self.present = self.of_class > 0
        """Classes that have an image."""


def _of_each_class(shown: _Shown, classes: Sequence[str]) -> dict[str, float]:
    """Return precision, recall, F1 and number of images of each class; of one without images that number alone."""
    found: dict[str, float] = {}
    for name, right, support, taken in zip(classes, shown.right, shown.of_class, shown.taken_for, strict=True):
        if support:
            found[f"precision:{name}"] = right / max(taken, 1)
            found[f"recall:{name}"] = right / support
            found[f"f1:{name}"] = 2 * right / (support + taken)
        found[f"{SUPPORT}:{name}"] = support
    return found


def _balanced_accuracy(shown: _Shown) -> float:
    return float(np.mean(shown.right[shown.present] / shown.of_class[shown.present]))


def _roc_auc(shown: _Shown) -> float | None:
    """Return the share of pairs that are in order, a tie for half a one, from ranks (Mann and Whitney 1947)."""
    from scipy.stats import rankdata

    if shown.present.sum() < 2:
        return None
    positive = shown.of_class[shown.present]
    ranks = rankdata(shown.probabilities[:, shown.present], axis=0)
    mine = np.where(shown.labels[:, None] == np.flatnonzero(shown.present), ranks, 0).sum(axis=0)
    pairs = positive * (len(shown.labels) - positive)
    return float(np.mean((mine - positive * (positive + 1) / 2) / pairs))


def _average_precision(shown: _Shown) -> float:
    """Return the mean over a class's images of the precision at the threshold that just takes each of them."""
    probabilities = shown.probabilities[:, shown.present]
    order = np.argsort(-probabilities, axis=0, kind="stable")
    ordered = np.take_along_axis(probabilities, order, axis=0)
    hits = shown.labels[order] == np.flatnonzero(shown.present)
    count = len(order)
    # Images of equal probability are taken together: each sees the precision at the last of them.
    is_last = np.vstack([ordered[1:] != ordered[:-1], np.ones((1, ordered.shape[1]), dtype=bool)])
    last = np.where(is_last, np.arange(count)[:, None], count)
    last = np.minimum.accumulate(last[::-1], axis=0)[::-1]
    precision = np.cumsum(hits, axis=0) / np.arange(1, count + 1)[:, None]
    seen = np.take_along_axis(precision, last, axis=0)
    return float(np.mean((seen * hits).sum(axis=0) / hits.sum(axis=0)))


def _mcc(shown: _Shown) -> float:
    """Return the correlation for several classes (Gorodkin 2004), 0 where the labels or the predictions are all one."""
    count, right = float(len(shown.labels)), float(shown.right.sum())
    labels, taken = shown.of_class.astype(float), shown.taken_for.astype(float)
    spread = (count**2 - taken @ taken) * (count**2 - labels @ labels)
    return float((count * right - labels @ taken) / np.sqrt(spread)) if spread else 0.0


def _kappa(shown: _Shown) -> float | None:
    """Return Cohen's kappa with quadratic weights (Cohen 1968), None where chance would agree as well."""
    numbers = np.arange(len(shown.of_class))
    weights = (numbers[:, None] - numbers) ** 2
    chance = float(shown.of_class @ weights @ shown.taken_for) / len(shown.labels)
    return 1 - float((weights * shown.confusion).sum()) / chance if chance else None


def _calibration_error(shown: _Shown) -> float:
    """Return the expected calibration error (Guo et al. 2017, eq. 3): bins (0, 1/15], (1/15, 2/15] and so on."""
    confidence, right = shown.probabilities.max(axis=1), shown.predicted == shown.labels
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]
    bins = np.digitize(confidence, edges, right=True)
    gaps = np.bincount(bins, weights=right - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(shown.labels))


_MEASURES = {
    "balanced_accuracy": _balanced_accuracy,
    "roc_auc": _roc_auc,
    "average_precision": _average_precision,
    "mcc": _mcc,
    "kappa": _kappa,
    "ece": _calibration_error,
}
"""Functions of what a model says; None where undefined."""


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
