"""Metrics that objectives and limits name, held against the images before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imgcls_search import terminal
from imgcls_search.data import describe, is_there, label_sets
from imgcls_search.data.label_sets import Labels
from imgcls_search.errors import UserError, closest
from imgcls_search.measures import class_of
from imgcls_search.space import Space
from imgcls_search.train.custom_metrics import installed

MOST_CLASSES = 20
"""Classes that a message names."""


def refuse_early(space: Space, cache: Path) -> None:
    """Refuse metrics that have no value on a folder of images that is there, before an image is decoded.

    Raises:
        UserError: a metric has none.
        DataError: the images cannot be split.
    """
    component = space.first().component("data")
    if is_there(component) and any(_needs(metric) for metric in space.named_metrics):
        source = describe(component, cache)
        refuse_undefined(space, source.classes, source.labels["val"])


def refuse_undefined(space: Space, classes: Sequence[str], labels: Labels) -> None:
    """Refuse metrics that have no value on images of some classes, where the validation images have these labels.

    Raises:
        UserError: a metric has none.
    """
    seen = label_sets.seen(labels)
    if label_sets.are_several(labels) and not seen:
        raise UserError(f"{space.first().component('data').path}: no validation image has a label to measure by")
    for metric in space.named_metrics:
        name = class_of(metric)
        problem = None
        if name is not None and name not in classes:
            known = ", ".join(classes[:MOST_CLASSES]) + (", ..." if len(classes) > MOST_CLASSES else "")
            problem = f"there is no class {name!r}; classes: {known}{closest(name, classes)}"
        elif name is not None and classes.index(name) not in seen:
            problem = f"no validation image is of class {name!r}"
        elif name is not None and metric.startswith("sensitivity@") and not _has_others(classes.index(name), labels):
            problem = f"each validation image is of class {name!r}"
        elif _needs(metric) and metric != "top5_accuracy" and len(seen) < 2 and not _works_on_one(metric):
            problem = "needs validation images of two classes at least"
        elif metric == "top5_accuracy" and len(classes) <= 5:
            problem = f"needs more than 5 classes, got {len(classes)}"
        if problem is not None:
            path = _path(space, metric)
            raise UserError(terminal.shown(f"{space.locate(path)}: {path}: {problem}"))


def custom(space: Space) -> tuple[str, ...]:
    """Return the metrics of other packages that a space names."""
    return tuple(name for name in space.named_metrics if name in installed())


def _needs(metric: str) -> bool:
    """Tell whether a metric has a value on some images only."""
    return metric in ("top5_accuracy", "roc_auc", "kappa") or class_of(metric) is not None


def _has_others(number: int, labels: Labels) -> bool:
    """Tell whether some images with several labels lack one of them; of one class each, fewer than two are refused."""
    return not label_sets.are_several(labels) or not labels[:, number].all()


def _works_on_one(metric: str) -> bool:
    return class_of(metric) is not None and not metric.startswith("sensitivity@")


def _path(space: Space, metric: str) -> str:
    is_objective = any(metric == name for name, _ in space.objectives)
    return f"study.objectives.{metric}" if is_objective else f"limits.{metric}"
