"""Linear and nearest-neighbour probes of features, fitted by scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]

STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Inverse penalty strengths that are compared, for features of deviation 1."""

FOLDS = 3
MOST_ROWS = 5_000
"""Images for the choice of the penalty; more make it slower, not better."""

MOST_STEPS = 500
TOLERANCE = 1e-5
"""Tolerance of the gradient: probabilities are within 0.01 of the optimum."""

ROUGH = 1e-3
"""Tolerance when strengths are compared."""

NEIGHBOURS = 10


@dataclass(frozen=True, kw_only=True)
class LinearHead:
    """A linear layer on features: logits are features @ weight.T + bias."""

    weight: Floats
    """[classes, D]."""

    bias: Floats
    """[classes]."""

    strength: float
    """The inverse strength of the chosen penalty."""

    def logits(self, features: Floats) -> Floats:
        """Return logits [N, classes] of features [N, D]."""
        found: Floats = np.asarray(features @ self.weight.T + self.bias, dtype=np.float32)
        return found


def fit_linear(
    features: Floats,
    labels: Numbers,
    classes: int,
    seed: int,
    strength: float | None = None,
    class_weights: Sequence[float] | None = None,
) -> LinearHead:
    """Fit multinomial logistic regression with a quadratic penalty, chosen by cross-validation unless given.

    Features are scaled to deviation 1 for the fit; the returned layer takes unscaled features. Classes without images
    get a logit below all others. `class_weights` [classes] weigh the images of each class in the loss.
    """
    mean, std = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    # A constant feature carries no information, and its deviation of 0 cannot be divided by.
    std = np.where(std > 1e-6 * max(float(std.max()), 1e-12), std, np.inf)
    scaled = np.asarray((features - mean) / std, dtype=np.float32)
    counted = None if class_weights is None else np.asarray(class_weights, dtype=np.float64)[labels]
    strength = _choose(scaled, labels, seed, counted) if strength is None else strength
    with _without_harmless_warnings():
        fitted = _regression(strength).fit(scaled, labels, sample_weight=counted)
    weight = np.zeros((classes, features.shape[1]))
    bias = np.full(classes, -1e4)
    if len(fitted.classes_) == 2:
        weight[fitted.classes_] = np.concatenate([-fitted.coef_ / 2, fitted.coef_ / 2])
        bias[fitted.classes_] = np.concatenate([-fitted.intercept_ / 2, fitted.intercept_ / 2])
    else:
        weight[fitted.classes_], bias[fitted.classes_] = fitted.coef_, fitted.intercept_
    weight = weight / std
    return LinearHead(
        weight=weight.astype(np.float32), bias=(bias - weight @ mean).astype(np.float32), strength=strength
    )


def fit_several(
    features: Floats, labels: npt.NDArray[Any], seed: int, label_weights: Sequence[float] | None = None
) -> LinearHead:
    """Fit one logistic regression for each of several labels, 0 or 1 [N, labels], each with its own penalty.

    `label_weights` [labels] weigh the images that have the label; images that lack it count 1. A label that all images
    have, or none, gets a constant logit that says so.
    """
    weight, bias = np.zeros((labels.shape[1], features.shape[1]), np.float32), np.zeros(labels.shape[1], np.float32)
    strengths = []
    for label, column in enumerate(labels.T.astype(np.int64)):
        if len(np.unique(column)) < 2:
            bias[label] = 10.0 if column.all() else -10.0
            continue
        weights = None if label_weights is None else (1.0, label_weights[label])
        head = fit_linear(features, column, 2, seed, class_weights=weights)
        # With two classes, only the difference of the logits matters.
        weight[label], bias[label] = head.weight[1] - head.weight[0], head.bias[1] - head.bias[0]
        strengths.append(head.strength)
    return LinearHead(weight=weight, bias=bias, strength=float(np.median(strengths or [STRENGTHS[-1]])))


def _choose(scaled: Floats, labels: Numbers, seed: int, counted: npt.NDArray[Any] | None) -> float:
    """Return the strength with the least log loss over folds; the weakest penalty if there are too few images for
    folds.

    `counted` [N] is the weight of each image, None if all are equal.
    """
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold

    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(labels))[:MOST_ROWS])
    # A class with fewer images than folds would be missing in one of them.
    counts = np.bincount(labels[rows])
    rows = rows[counts[labels[rows]] >= FOLDS]
    if len(np.unique(labels[rows])) < 2:
        return STRENGTHS[-1]
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    losses = np.zeros(len(STRENGTHS))

    def of(chosen: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
        return None if counted is None else counted[rows[chosen]]

    for known, asked in folds.split(rows, labels[rows]):
        # Each strength starts from the coefficients of the previous one.
        model = _regression(STRENGTHS[0], ROUGH, warm_start=True)
        for index, strength in enumerate(STRENGTHS):
            with _without_harmless_warnings():
                model.set_params(C=strength).fit(scaled[rows[known]], labels[rows[known]], sample_weight=of(known))
            predicted = model.predict_proba(scaled[rows[asked]])
            losses[index] += log_loss(labels[rows[asked]], predicted, labels=model.classes_, sample_weight=of(asked))
    return STRENGTHS[int(losses.argmin())]


@contextmanager
def _without_harmless_warnings() -> Iterator[None]:
    # A weak penalty takes thousands of steps to its optimum; the last ones change less than one image does. Products of
    # float32 sometimes leave the flag of an invalid value behind though all values are finite: their kernels also
    # compute with unused parts of vectors. Values that are not finite would be refused by `log_loss` and `fit`.
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _regression(strength: float, tolerance: float = TOLERANCE, *, warm_start: bool = False) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=MOST_STEPS, tol=tolerance, warm_start=warm_start)


def predict_by_neighbours(known: Floats, labels: Numbers, asked: Floats) -> Numbers:
    """Return for each row of `asked` the class of its nearest rows in `known`, by cosine, weighted by distance."""
    from sklearn.neighbors import KNeighborsClassifier

    count = min(NEIGHBOURS, len(labels))
    found = KNeighborsClassifier(count, metric="cosine", weights="distance").fit(known, labels)
    predicted: Numbers = np.asarray(found.predict(asked), dtype=np.int64)
    return predicted
