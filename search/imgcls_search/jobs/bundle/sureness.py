"""Calibrate a bundle's probabilities and choose its thresholds on the validation images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from imgcls_search import costs
from imgcls_search.deploy import unlike
from imgcls_search.deploy.unlike import Score
from imgcls_search.errors import UserError
from imgcls_search.jobs.bundle.weights import Trained
from imgcls_search.training import calibration, refusing
from imgcls_search.training.calibration import Calibration, Quality
from imgcls_search.training.refusing import Answered

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Sureness:
    """Temperatures and thresholds, with their measured effect."""

    calibration: Calibration
    cuts: tuple[float, ...] | None
    """Lowest calibrated probability at which an image has each label; None with one class per image."""

    answered: tuple[Answered, ...] = ()
    """Images answered at several confidence thresholds, and how many are right; empty with several labels."""

    target: float | None = None
    """The requested precision."""

    refusal: Answered | None = None
    """The threshold that reaches the target."""

    unlike: float | None = None
    """Score above which an image is marked as unlike the training images."""

    score: Score = "feature_distance"
    """The kind of score that `unlike` is a threshold of."""


def check_target(trained: Trained, target: float | None) -> None:
    """Refuse a precision that cannot be reached, before anything is exported.

    Raises:
        UserError: it is not a precision, or the images to measure it on are too few or may have been trained on.
    """
    if target is None:
        return
    option = f"--target-precision {target:g}"
    if not 0 < target < 1:
        raise UserError(f"{option}: not allowed; allowed: a number above 0 and below 1")
    if trained.data.has_several_labels:
        raise UserError(f"{option}: is for images of one class; with several labels each label has its threshold")
    if not trained.is_held_out:
        raise UserError(f"{option}: the validation images of {trained.title} may have been trained on")
    needed, count = refusing.fewest_images(target), trained.data.counts["val"]
    if count < needed:
        raise UserError(f"{option}: needs at least {needed} validation images, all of them right; there are {count}")


def settle(
    trained: Trained,
    logits: Array,
    distances: Array | None,
    labels: Array,
    *,
    are_same: bool,
    target: float | None,
) -> Sureness:
    """Calibrate and choose thresholds from the file's outputs for the validation images.

    Raises:
        UserError: no threshold reaches the requested precision.
    """
    several, count = trained.data.has_several_labels, len(trained.data.classes)
    is_held_out = trained.is_held_out and are_same
    if target is not None and not is_held_out:
        raise UserError(f"--target-precision {target:g}: the images have changed since the training")
    if is_held_out:
        found = calibration.calibrate(logits, labels)
    else:
        reason = "the validation images may have been trained on"
        found = calibration.none(reason, images=len(labels), labels=count if several else 1)
    cuts = trained.data.cuts
    if cuts is not None:
        cuts = tuple(found.threshold(number, cut) for number, cut in enumerate(cuts))
    limit = unlike.threshold(distances) if distances is not None and is_held_out else None
    if several:
        return Sureness(calibration=found, cuts=cuts, unlike=limit)
    # As the calibrated file will return them.
    shares = calibration.probabilities(found.applied(logits), labels)
    if distances is None and is_held_out:
        limit = unlike.threshold(unlike.doubt(shares))
    confidence, right = decisions(trained, (logits / np.float32(found.temperatures[0])), labels)
    refusal = _reached(confidence, right, target) if target is not None else None
    answered = tuple(refusing.table(confidence, right)) if is_held_out else ()
    return Sureness(
        calibration=found,
        cuts=cuts,
        answered=answered,
        target=target,
        refusal=refusal,
        unlike=limit,
        score="feature_distance" if distances is not None else "largest_probability",
    )


def decisions(trained: Trained, logits: Array, labels: Array) -> tuple[Array, Array]:
    """Return the probability of the class chosen for each image, and whether it is right."""
    probabilities = calibration.probabilities(logits, labels)
    stated = costs.of(trained.config.tree)
    decided = costs.decided(probabilities, costs.matrix(stated, trained.data.classes) if stated is not None else None)
    return np.take_along_axis(probabilities, decided[:, None], axis=1)[:, 0], decided == labels


def _reached(confidence: Array, right: Array, target: float) -> Answered:
    found = refusing.smallest_threshold(confidence, right, target)
    if found is None:
        order = np.argsort(-confidence, kind="stable")
        hits = right[order].cumsum()
        best = max(refusing.lower_bound(int(hits[number]), number + 1) for number in range(len(hits)))
        raise UserError(
            f"--target-precision {target:g}: no threshold reaches it on {len(right)} validation images; "
            f"the highest lower 95 % bound is {best:.3f}"
        )
    return found


class QualityMetrics(TypedDict):
    """How well probabilities match the labels, see `training.calibration.Quality`."""

    loss: float
    error: float


class CalibrationMetrics(TypedDict):
    """Temperatures that divide the logits, and their effect."""

    is_calibrated: bool
    temperature: float | dict[str, float]
    """One for all classes, or one per label, by name."""

    before: QualityMetrics | None
    held_out: QualityMetrics | None
    """With temperatures that were fitted on other images; None if no temperature is kept."""

    images: int
    reason: str
    """Why no temperature is kept."""


class AnsweredMetrics(TypedDict):
    """Images answered above a confidence threshold, and how many are right."""

    min_confidence: float
    answered: int
    images: int
    """All images, answered or not."""

    right: int
    """Right answers among the answered images."""

    lower_bound_95: float


class RefusalMetrics(AnsweredMetrics):
    """The threshold that reaches a requested precision."""

    target_precision: float | None


class UnlikeMetrics(TypedDict):
    """Score above which an image is marked as unlike the training images."""

    score: Score
    threshold: float


class SurenessMetrics(TypedDict):
    """The section of `metrics.json` on how reliable the probabilities are."""

    calibration: CalibrationMetrics
    answered: list[AnsweredMetrics]
    refusal: RefusalMetrics | None
    unlike: UnlikeMetrics | None


def as_numbers(found: Sureness, classes: Sequence[str]) -> SurenessMetrics:
    """Return the calibration and thresholds as in `metrics.json`."""
    made = found.calibration
    several = len(made.temperatures) > 1
    temperatures = dict(zip(classes, made.temperatures, strict=True)) if several else made.temperatures[0]
    return {
        "calibration": {
            "is_calibrated": made.is_kept,
            "temperature": temperatures,
            "before": _quality(made.before),
            "held_out": _quality(made.after),
            "images": made.images,
            "reason": made.reason,
        },
        "answered": [_row(row) for row in found.answered],
        "refusal": {**_row(found.refusal), "target_precision": found.target} if found.refusal is not None else None,
        "unlike": {"score": found.score, "threshold": found.unlike} if found.unlike is not None else None,
    }


def _quality(found: Quality | None) -> QualityMetrics | None:
    return {"loss": found.loss, "error": found.error} if found is not None else None


def _row(row: Answered) -> AnsweredMetrics:
    return {
        "min_confidence": row.threshold,
        "answered": row.answered,
        "images": row.images,
        "right": row.right,
        "lower_bound_95": row.lower,
    }
