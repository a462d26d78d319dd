"""Pictures of a finished trial for optuna-dashboard: learning curves, confusion matrix, mistakes."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgcls_search import atomic, costs
from imgcls_search.measures import by_class
from imgcls_search.probabilities import sigmoid, softmax
from imgcls_search.terminal import shown
from imgcls_search.training.metrics import Wanted, confusion, score
from imgcls_search.training.metrics_several import choose_thresholds
from imgcls_search.worker import drawing, figures

WORST = 16
"""Number of mistakes shown, the most confident first."""


def draw(
    folder: Path,
    trial: int,
    *,
    history: Sequence[Mapping[str, float]],
    logits: np.ndarray[Any, Any],
    labels: np.ndarray[Any, Any],
    pixels: Any,
    classes: Sequence[str],
    stated: costs.Costs | None = None,
    pretrained: Sequence[Mapping[str, float]] = (),
) -> dict[str, str]:
    """Write the pictures, each completely or not at all, and return their names by file name.

    `logits` [N, classes] are for the validation images `pixels`, uint8 [N, C, H, W], with class numbers `labels` [N],
    or with several labels each, 0 or 1 [N, classes]. `stated` are the costs of decisions, if there are any.
    `pretrained` has the epochs of the pretraining that the trial started from, if they are known.

    Raises:
        OSError: they cannot be written.
    """
    drawn: dict[str, Any] = {"learning-curves.png": figures.learning(history)}
    if pretrained:
        drawn["health-of-pretraining.png"] = figures.health(pretrained)
    if labels.ndim == 2:
        drawn |= _of_labels(logits, labels, pixels, classes)
        return _written(folder, trial, drawn)
    predicted = _decided(softmax(logits), classes, stated)
    matrix = confusion(labels, predicted, len(classes))
    of_classes = confusions(matrix, list(map(shown, classes)))
    drawn |= {
        "confusion-matrix.png": of_classes[0],
        **({"confusion-of-all-classes.png": of_classes[1]} if len(of_classes) > 1 else {}),
        "confident-mistakes.png": figures.mistakes(worst(logits, labels, pixels, classes, stated)),
    }
    return _written(folder, trial, drawn)


def draw_health(folder: Path, trial: int, history: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Write the picture of a pretraining, and return its name by file name.

    Raises:
        OSError: it cannot be written.
    """
    return _written(folder, trial, {"health.png": figures.health(history)})


def _of_labels(
    logits: np.ndarray[Any, Any],
    labels: np.ndarray[Any, Any],
    pixels: Any,
    classes: Sequence[str],
) -> dict[str, Any]:
    """Return the pictures for several labels per image, 0 or 1 [N, labels]."""
    shares = sigmoid(logits)
    # The same thresholds as in the trial's evaluation, because the images are the same.
    cuts = choose_thresholds(shares, labels.astype(bool))
    scores = by_class(score(logits, labels, Wanted(classes=tuple(classes), is_full=True)))[1]
    return {
        "label-scores.png": figures.label_scores(
            {shown(name): found for name, found in scores.items() if "f1" in found}
        ),
        "confident-mistakes.png": figures.mistakes(
            [
                (
                    np.asarray(pixels[np.array([image])])[0],
                    f"{_named(classes[label])} {shares[image, label]:.0%},\n"
                    + ("has it" if labels[image, label] else "has it not"),
                )
                for image, label in label_mistakes(shares, (shares >= cuts).astype(np.uint8), labels, WORST)
            ]
        ),
    }


def label_mistakes(
    probabilities: np.ndarray[Any, Any], said: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], most: int
) -> list[tuple[int, int]]:
    """Return at most `most` pairs of image and label that are predicted wrongly, the most confident first."""
    images, numbers = np.nonzero(said != labels)
    far = np.abs(probabilities[images, numbers] - labels[images, numbers])
    order = np.argsort(-far, kind="stable")[:most]
    return list(zip(images[order].tolist(), numbers[order].tolist(), strict=True))


def _written(folder: Path, trial: int, drawn: Mapping[str, Any]) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, figure in drawn.items():
        # Optuna's ids are random; these are fixed per trial, so that a new drawing replaces the old one.
        key = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{trial}/{name}"))
        atomic.write_bytes(folder / key, drawing.to_png(figure))
        found[key] = name
    return found


def worst(
    logits: np.ndarray[Any, Any],
    labels: np.ndarray[Any, Any],
    pixels: Any,
    classes: Sequence[str],
    stated: costs.Costs | None = None,
) -> list[tuple[np.ndarray[Any, Any], str]]:
    """Return the most confident mistakes: images [C, H, W], each with a caption."""
    shares = softmax(logits)
    predicted = _decided(shares, classes, stated)
    confidence = np.take_along_axis(shares, predicted[:, None], axis=1)[:, 0]
    return [
        (
            np.asarray(pixels[np.array([index])])[0],
            f"{_named(classes[predicted[index]])} {confidence[index]:.0%},\nis {_named(classes[labels[index]])}",
        )
        for index in mistakes(shares, predicted, labels)[:WORST].tolist()
    ]


def _named(name: str) -> str:
    """Return a class name that has room above its image."""
    return figures.cut(shown(name), 22)


def _decided(shares: np.ndarray[Any, Any], classes: Sequence[str], stated: costs.Costs | None) -> np.ndarray[Any, Any]:
    return costs.decided(shares, costs.matrix(stated, classes) if stated is not None else None)


def mistakes(
    probabilities: np.ndarray[Any, Any], predicted: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Return the indices of misclassified images, the most confident first; `probabilities` [N, classes]."""
    wrong = np.flatnonzero(predicted != labels)
    return wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")]


def most_confused(matrix: np.ndarray[Any, Any], most: int = figures.MOST_NAMED - 1) -> np.ndarray[Any, Any]:
    """Return the class numbers with the most errors, as true or as predicted class, in order."""
    errors = matrix - np.diag(np.diag(matrix))
    worst = np.argsort(-(errors.sum(axis=0) + errors.sum(axis=1)), kind="stable")[:most]
    return np.sort(worst)


def folded(matrix: np.ndarray[Any, Any], kept: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return a confusion matrix of some classes, with all others merged into a last row and column."""
    others = np.setdiff1d(np.arange(len(matrix)), kept)
    found = np.zeros((len(kept) + 1,) * 2, dtype=matrix.dtype)
    found[:-1, :-1] = matrix[np.ix_(kept, kept)]
    found[:-1, -1] = matrix[np.ix_(kept, others)].sum(axis=1)
    found[-1, :-1] = matrix[np.ix_(others, kept)].sum(axis=0)
    found[-1, -1] = matrix[np.ix_(others, others)].sum()
    return found


def confusions(matrix: np.ndarray[Any, Any], classes: Sequence[str]) -> list[Any]:
    """Return pictures of a confusion matrix; with too many classes to read, a picture of the worst ones comes first."""
    whole = figures.confusion(matrix, classes)
    if len(classes) <= figures.MOST_NAMED:
        return [whole]
    kept = most_confused(matrix)
    names = [*(classes[number] for number in kept), f"{len(classes) - len(kept)} others"]
    return [figures.confusion(folded(matrix, kept), names), whole]
