"""Metrics of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imgcls_search import costs
from imgcls_search.errors import DivergedError
from imgcls_search.measures import ALWAYS, CORRUPTED, COSTED, NAMED, SEVERAL_ALWAYS, SUPPORT, class_of, specificity
from imgcls_search.training import custom_metrics, metrics_several
from imgcls_search.training.ranking import average_precisions, roc_areas, sensitivity

METRICS: Mapping[str, str] = {
    **ALWAYS,
    **NAMED,
    **COSTED,
    **CORRUPTED,
    **{name: sentence for name, sentence in SEVERAL_ALWAYS.items() if name not in {*ALWAYS, *NAMED}},
}
"""Metrics of one evaluation, each with a one-sentence description."""

CALIBRATION_BINS = 15
"""Bins of equal width, as in Guo et al. 2017."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Metrics that an evaluation computes in addition to the standard ones."""

    classes: tuple[str, ...] = ()
    """Class names, which metrics of single classes refer to."""

    named: tuple[str, ...] = ()
    """Metrics that an objective or a limit names."""

    costs: costs.Costs | None = None
    """Costs of decisions, for `cost` and `decision_accuracy`."""

    is_full: bool = False
    """Whether to compute all metrics, as at the end of a training."""

    thresholds: tuple[float, ...] | None = None
    """Thresholds of the labels, with several labels per image; None: chosen on the evaluated images."""


def score(logits: Array, labels: Array, wanted: Wanted | None = None) -> dict[str, float]:
    """Return every metric that is defined, from logits [N, classes] and class numbers [N].

    With several labels per image, 0 or 1 [N, classes], see `metrics_several`.

    Means over classes skip classes without images. Metrics of one class are left out if the class has no image;
    `roc_auc` and `sensitivity@...` also if there is no other class.

    Raises:
        DivergedError: logits are NaN or infinite, so that the largest one means nothing.
    """
    if not np.isfinite(logits).all():
        raise DivergedError("the model gives NaN or infinite logits")
    if labels.ndim == 2:
        asked = wanted or Wanted()
        return metrics_several.score(
            logits,
            labels,
            classes=asked.classes,
            named=asked.named,
            is_full=asked.is_full,
            thresholds=asked.thresholds,
        )
    predicted = logits.argmax(axis=1)
    probabilities = softmax(logits)
    shown = _Shown(probabilities, predicted, labels)
    scores = {
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": _macro_f1(shown),
        "loss": _loss(shown),
    }
    if logits.shape[1] > 5:
        scores["top5_accuracy"] = _top5_accuracy(logits, labels)
    if wanted is not None and (wanted.named or wanted.is_full):
        scores |= _more(shown, wanted)
    return {name: float(value) for name, value in scores.items()}


def _more(shown: _Shown, wanted: Wanted) -> dict[str, float]:
    """Return the named metrics beyond the standard ones, or all of them."""
    probabilities, labels = shown.probabilities, shown.labels
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
        if custom_metrics.is_custom(name):
            found[name] = custom_metrics.measure(name, probabilities, labels)
    for name in of_classes:
        number = wanted.classes.index(class_of(name) or "")
        if name.startswith("sensitivity@"):
            value = sensitivity(probabilities[:, number], labels == number, specificity(name))
            if value is not None:
                found[name] = value
        elif name.startswith("average_precision:") and shown.present[number]:
            found[name] = float(average_precisions(probabilities[:, [number]], (labels == number)[:, None])[0])
    return found


def _by_costs(shown: _Shown, wanted: Wanted) -> dict[str, float]:
    """Return the mean cost of cost-based decisions and their accuracy, if wanted."""
    if wanted.costs is None or not (wanted.is_full or COSTED.keys() & set(wanted.named)):
        return {}
    matrix = costs.matrix(wanted.costs, wanted.classes)
    decided = costs.decided(shown.probabilities, matrix)
    found = {
        "cost": float(matrix[shown.labels, decided].mean()),
        "decision_accuracy": float((decided == shown.labels).mean()),
    }
    return {name: value for name, value in found.items() if wanted.is_full or name in wanted.named}


def confusion(labels: Array, predicted: Array, classes: int) -> Array:
    """Return the confusion matrix: rows are the true classes, columns the predicted ones."""
    counts: Array = np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes**2)
    return counts.reshape(classes, classes)


class _Shown:
    """A model's predictions and their confusion matrix.

    Its metrics need a few sums over all classes at once: scikit-learn, which the tests compare with, takes 100 ms
    instead of 4 on 216 images of 10 classes, too slow for searches of short trainings, and two seconds to import.
    """

    def __init__(self, probabilities: Array, predicted: Array, labels: Array) -> None:
        self.probabilities, self.predicted, self.labels = probabilities, predicted, labels
        self.confusion = confusion(labels, predicted, probabilities.shape[1])
        """Rows are the true classes, columns the predicted ones."""
        self.of_class, self.taken_for = self.confusion.sum(axis=1), self.confusion.sum(axis=0)
        self.right = np.diag(self.confusion)
        self.present = self.of_class > 0
        """Mask of the classes that have an image."""


def _of_each_class(shown: _Shown, classes: Sequence[str]) -> dict[str, float]:
    """Return precision, recall, F1 and number of images of each class; for a class without images the number alone."""
    found: dict[str, float] = {}
    for name, right, support, taken in zip(classes, shown.right, shown.of_class, shown.taken_for, strict=True):
        if support:
            found[f"precision:{name}"] = right / max(taken, 1)
            found[f"recall:{name}"] = right / support
            found[f"f1:{name}"] = 2 * right / (support + taken)
        found[f"{SUPPORT}:{name}"] = support
    return found


def _macro_f1(shown: _Shown) -> float:
    """Return the mean over classes that have images."""
    here = shown.present
    return float(np.mean(2 * shown.right[here] / (shown.of_class[here] + shown.taken_for[here])))


def _loss(shown: _Shown) -> float:
    """Return the mean cross-entropy; probabilities are clipped, because the logarithm of 0 is infinite."""
    given = shown.probabilities[np.arange(len(shown.labels)), shown.labels]
    least = np.finfo(given.dtype).eps
    return float(-np.log(given.clip(least, 1 - least)).mean())


def _top5_accuracy(logits: Array, labels: Array) -> float:
    """Return the share of images whose class has one of the five largest logits; of ties, the last ones count."""
    best = np.argsort(logits, axis=1, kind="stable")[:, -5:]
    return float((best == labels[:, None]).any(axis=1).mean())


def _balanced_accuracy(shown: _Shown) -> float:
    return float(np.mean(shown.right[shown.present] / shown.of_class[shown.present]))


def _roc_auc(shown: _Shown) -> float | None:
    """Return the mean one-vs-rest area under the ROC curve."""
    if shown.present.sum() < 2:
        return None
    are_of = shown.labels[:, None] == np.flatnonzero(shown.present)
    return float(np.mean(roc_areas(shown.probabilities[:, shown.present], are_of)))


def _average_precision(shown: _Shown) -> float:
    """Return the mean one-vs-rest average precision."""
    are_of = shown.labels[:, None] == np.flatnonzero(shown.present)
    return float(np.mean(average_precisions(shown.probabilities[:, shown.present], are_of)))


def _mcc(shown: _Shown) -> float:
    """Return the multiclass correlation (Gorodkin 2004), 0 if all labels or all predictions are equal."""
    count, right = float(len(shown.labels)), float(shown.right.sum())
    labels, taken = shown.of_class.astype(float), shown.taken_for.astype(float)
    spread = (count**2 - taken @ taken) * (count**2 - labels @ labels)
    return float((count * right - labels @ taken) / np.sqrt(spread)) if spread else 0.0


def _kappa(shown: _Shown) -> float | None:
    """Return Cohen's kappa with quadratic weights (Cohen 1968), None if the expected disagreement is 0."""
    numbers = np.arange(len(shown.of_class))
    weights = (numbers[:, None] - numbers) ** 2
    chance = float(shown.of_class @ weights @ shown.taken_for) / len(shown.labels)
    return 1 - float((weights * shown.confusion).sum()) / chance if chance else None


def _calibration_error(shown: _Shown) -> float:
    """Return the expected calibration error (Guo et al. 2017, eq. 3), with bins (0, 1/15], (1/15, 2/15] and so on."""
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
"""Functions of a model's predictions; None where undefined."""


def softmax(logits: Array) -> Array:
    """Return probabilities [N, classes], in double precision, from logits [N, classes]."""
    # SciPy's softmax gives the same, but is slow to import.
    probabilities: Array = logits.astype(np.float64)
    probabilities -= probabilities.max(axis=1, keepdims=True)
    np.exp(probabilities, out=probabilities)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return probabilities


def probabilities_of(logits: Array, *, several: bool) -> Array:
    """Return probabilities [N, classes] from logits, of classes or of `several` labels."""
    return metrics_several.sigmoid(logits) if several else softmax(logits)
