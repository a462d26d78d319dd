"""The names of measures: `accuracy`, `recall:tumor`, `sensitivity@0.95:tumor`."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

ALWAYS: Mapping[str, str] = {
    "accuracy": "share of images whose most likely class is right (top-1), 0 to 1",
    "top5_accuracy": "share of images whose class is among the five most likely, 0 to 1; needs more than five classes",
    "macro_f1": "F1 score of each class, averaged with equal weights, 0 to 1",
    "loss": "log loss (cross-entropy), nats; without label smoothing, class weights or focusing, so trials compare",
}
"""Measures of every epoch, each with one sentence."""

NAMED: Mapping[str, str] = {
    "balanced_accuracy": "recall of each class, averaged with equal weights, 0 to 1",
    "roc_auc": "area under the ROC curve of each class against the others, averaged with equal weights, 0 to 1",
    "average_precision": "average precision of each class against the others, averaged with equal weights, 0 to 1",
    "mcc": "Matthews correlation coefficient, -1 to 1; 0 is chance",
    "kappa": "Cohen's kappa with quadratic weights, -1 to 1; for ordered classes, in the order of their names",
    "ece": "expected calibration error: mean difference of confidence and accuracy in 15 bins of equal width, 0 to 1",
}
"""Measures of an epoch if an objective or a limit names them, and of a finished network."""

CORRUPTION = "corruption_accuracy"

CORRUPTED: Mapping[str, str] = {
    CORRUPTION: "mean top-1 over blur, noise, JPEG, brightness and contrast at severities 1, 3 and 5 (Hendrycks and "
    "Dietterich 2019), 0 to 1; scores each image 15 more times"
}
"""Measures on corrupted images, if named or requested: they need the pixels, not only the logits."""

SEVERAL_ALWAYS: Mapping[str, str] = {
    "average_precision": "mean average precision: that of each label, averaged with equal weights, 0 to 1",
    "macro_f1": "F1 score of each label at its threshold, averaged with equal weights, 0 to 1",
    "micro_f1": "F1 score of all labels of all images together, at their thresholds, 0 to 1; for several labels",
    "subset_accuracy": "share of images all of whose labels are right at their thresholds, 0 to 1; for several labels",
    "loss": "log loss (binary cross-entropy), nats, mean over labels",
}
"""Measures of every epoch if an image may have several labels."""

SEVERAL_NAMED: Mapping[str, str] = {"roc_auc": NAMED["roc_auc"]}
"""Further measures of several labels, if named, and of a finished network."""


THRESHOLD = "threshold"
"""`threshold:LABEL` is the probability from which an image has a label, chosen on validation images."""

PROBE, NEIGHBOURS = "probe_accuracy", "knn_accuracy"

OF_FEATURES: Mapping[str, str] = {
    PROBE: (
        "accuracy of a linear layer on the features of a pretrained network, on validation images, 0 to 1; for a "
        "search over the pretraining"
    ),
    NEIGHBOURS: (
        "accuracy of nearest neighbours on the features of a pretrained network, on validation images, 0 to 1; for a "
        "search over the pretraining"
    ),
}
"""Measures of a pretraining."""

LEAST_SPREAD = 0.1
"""Smallest spread of the projections of a pretraining; below it they have collapsed."""

COSTED: Mapping[str, str] = {
    "cost": "mean cost of the decisions by predict.costs, 0 or more",
    "decision_accuracy": "share of images whose class of lowest expected cost, by predict.costs, is right, 0 to 1",
}
"""Further measures if a configuration states costs."""

OF_CLASS: Mapping[str, tuple[str, str]] = {
    "recall:CLASS": (r"recall:(.+)", "share of the images of a class that are found (sensitivity), 0 to 1"),
    "precision:CLASS": (r"precision:(.+)", "share of the images predicted as a class that have it, 0 to 1"),
    "f1:CLASS": (r"f1:(.+)", "harmonic mean of precision and recall of a class, 0 to 1"),
    "average_precision:CLASS": (
        r"average_precision:(.+)",
        "average precision of a class against the others, or of a label, 0 to 1",
    ),
    "sensitivity@0.95:CLASS": (
        r"sensitivity@(?:0?\.[0-9]+|1|1\.0+):(.+)",
        "largest recall of a class at a specificity of at least 0.95, or of another number, 0 to 1",
    ),
}
"""Measures of one class, as people write them, each with its pattern and one sentence."""

SUPPORT = "support"
"""`support:CLASS` is the number of a class's images."""


KNOWN = frozenset({*ALWAYS, *NAMED, *COSTED, *CORRUPTED, *OF_FEATURES, *SEVERAL_ALWAYS})
"""All measures of this program that are not of a single class."""


def has_meaning(name: str, *, several: bool) -> bool:
    """Tell whether a measure of this program applies if an image has one class, or `several` labels."""
    known = {*SEVERAL_ALWAYS, *SEVERAL_NAMED} if several else {*ALWAYS, *NAMED, *COSTED, *CORRUPTED, *OF_FEATURES}
    return name in known or class_of(name) is not None or name not in KNOWN


def of_features(objectives: Iterable[tuple[str, str]]) -> str | None:
    """Return the first objective that is measured on features, as in a search over the pretraining; else None."""
    return next((metric for metric, _ in objectives if metric in OF_FEATURES), None)


def retraining_command(file: str, *, pretrains: bool) -> str:
    """Return the command that trains the exported best configuration of a search, or pretrains with it."""
    return f"imgcls-search pretrain {file} -o backbone.pt" if pretrains else f"imgcls-search train {file} --seeds 3"


def share_of_images(known: Mapping[str, T]) -> str:
    """Return the measure that is a share of whole images, so that an interval follows from their number."""
    return "accuracy" if "accuracy" in known else "subset_accuracy"


def main_measure(known: Mapping[str, T]) -> str:
    """Return the measure that every epoch has, whatever the objective: for one class each, or several labels.

    For a pretraining it is that of the probe, if measured; for images without any label, the share of right ones.
    """
    names = ("accuracy", "average_precision", "subset_accuracy", "probe_accuracy", "spread")
    return next((name for name in names if name in known), "average_precision")


def class_of(name: str) -> str | None:
    """Return the class of a measure, or None if it is of all classes."""
    found = (re.fullmatch(pattern, name, re.DOTALL) for pattern, _ in OF_CLASS.values())
    return next((match[1] for match in found if match), None)


def specificity(name: str) -> float:
    """Return the specificity that a `sensitivity@0.95:CLASS` names."""
    return float(name.partition("@")[2].partition(":")[0])


def bounds(name: str) -> tuple[float, float] | None:
    """Return the lowest and the highest value of a measure, or None for a custom one."""
    if name in ("mcc", "kappa"):
        return -1.0, 1.0
    if name in ("loss", "cost"):
        return 0.0, math.inf
    is_share = name in KNOWN or class_of(name) is not None
    return (0.0, 1.0) if is_share else None


COUNTS = (
    *("accuracy", "top5_accuracy", "macro_f1", "balanced_accuracy", "decision_accuracy"),
    *("micro_f1", "subset_accuracy", CORRUPTION, *OF_FEATURES),
)
"""Measures of all classes that count images."""


def is_share(name: str) -> bool:
    """Tell whether a measure counts images: on 100 of them there is no third decimal."""
    return name in COUNTS or (class_of(name) is not None and not name.startswith("average_precision:"))


def lowest_f1(classes: Mapping[str, Mapping[str, float]], most: int) -> list[str]:
    """Return the names of at most `most` classes in their order: of many, those with the lowest F1.

    Classes without F1, because they have no images, are the last to be chosen.
    """
    worst = set(sorted(classes, key=lambda name: classes[name].get("f1", math.inf))[:most])
    return [name for name in classes if name in worst]


def by_class(metrics: Mapping[str, T]) -> tuple[dict[str, T], dict[str, dict[str, T]]]:
    """Return the metrics of all classes together, and those of single classes by class."""
    together: dict[str, T] = {}
    single: dict[str, dict[str, T]] = {}
    for name, value in metrics.items():
        measure, _, support = name.partition(":")
        of = support if measure in (SUPPORT, THRESHOLD) and support else class_of(name)
        if of is None:
            together[name] = value
        else:
            single.setdefault(of, {})[measure] = value
    return together, single


def sign_of(direction: str) -> int:
    """Return 1 if larger values are better (`maximize`), -1 if smaller ones are."""
    return 1 if direction == "maximize" else -1


def is_number(value: Any) -> bool:
    """Tell whether a value that a file holds is a finite number."""
    # `math.isfinite` fails for whole numbers too large for a float.
    return type(value) in (int, float) and abs(value) <= sys.float_info.max
