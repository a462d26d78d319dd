"""Metrics that objectives and limits name, held against the images before anything is trained."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from imgcls_search import terminal
from imgcls_search.data import describe, is_there
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
        seen = set.intersection(*(set(labels.tolist()) for labels in source.fold_labels()))
        refuse_undefined(space, source.classes, seen)


def refuse_undefined(space: Space, classes: Sequence[str], seen: Collection[int]) -> None:
    """Refuse metrics that have no value on images of some classes, of which the validation images show those `seen`.

    Raises:
        UserError: a metric has none.
    """
    folds = space.first().folds
    for metric in space.named_metrics:
        name = class_of(metric)
        problem = None
        if name is not None and name not in classes:
            known = ", ".join(classes[:MOST_CLASSES]) + (", ..." if len(classes) > MOST_CLASSES else "")
            problem = f"there is no class {name!r}; classes: {known}{closest(name, classes)}"
        elif name is not None and classes.index(name) not in seen:
            where = "no validation image is" if folds == 1 else "not every fold has an image"
            problem = f"{where} of class {name!r}"
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


def _works_on_one(metric: str) -> bool:
    return class_of(metric) is not None and not metric.startswith("sensitivity@")


def _path(space: Space, metric: str) -> str:
    is_objective = any(metric == name for name, _ in space.objectives)
    return f"study.objectives.{metric}" if is_objective else f"limits.{metric}"
