"""Check metrics that objectives and limits name against the images, before any training."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from imgcls_search import terminal
from imgcls_search.data import Source, describe, is_there, label_sets
from imgcls_search.data.label_sets import Labels
from imgcls_search.errors import UserError, closest
from imgcls_search.measures import class_of
from imgcls_search.orchestrator import named_classes
from imgcls_search.space import Space
from imgcls_search.training.custom_metrics import is_custom
from imgcls_search.words import some


def refuse_early(space: Space, cache: Path, source: Source | None = None) -> None:
    """Refuse metrics, weights and costs that do not fit the images, if those are available, before decoding any.

    `source` describes the images, if they were looked for already.

    Raises:
        UserError: a metric has no value, or the space names a class that does not exist.
        DataError: the images cannot be split.
    """
    named_classes.refuse_costs(space)
    component = space.first().component("data")
    is_known = is_there(component) or component.name == "digits"
    if not is_known or not (any(map(_needs, space.named_metrics)) or named_classes.are_in(space.document)):
        return
    source = source or describe(component, cache)
    named_classes.refuse_unknown(space.document, source.classes, space.locate)
    labels = source.labels["val"]
    if source.has_several_labels:
        seen = label_sets.seen(labels)
    else:
        seen = set.intersection(*(set(labels.tolist()) for labels in source.fold_labels()))
    refuse_undefined(space, source.classes, seen, labels)


def refuse_undefined(space: Space, classes: Sequence[str], seen: Collection[int], labels: Labels) -> None:
    """Refuse metrics that have no value on the validation images, which show the classes `seen`.

    `labels` are those of the validation images.

    Raises:
        UserError: a metric has no value.
    """
    if label_sets.are_several(labels) and not seen:
        raise UserError(f"{space.first().component('data').path}: no validation image has a label to score with")
    folds = space.first().folds
    for metric in space.named_metrics:
        problem = undefined(metric, classes, seen, "validation")
        if problem is None and metric.startswith("sensitivity@"):
            name = class_of(metric)
            if name is not None and not _has_others(list(classes).index(name), labels):
                problem = f"each validation image is of class {name!r}"
        if problem is not None:
            if folds > 1:
                problem = f"in one of {folds} folds: {problem}"
            path = _path(space, metric)
            raise UserError(terminal.shown(f"{space.locate(path)}: {path}: {problem}"))


def undefined(metric: str, classes: Sequence[str], seen: Collection[int], split: str) -> str | None:
    """Return why a metric has no value on a split that shows the classes `seen`, or None if it has one."""
    name = class_of(metric)
    if name is not None and name not in classes:
        return f"there is no class {name!r}; classes: {some(classes, 20)}{closest(name, classes)}"
    if name is not None and classes.index(name) not in seen:
        return f"no {split} image is of class {name!r}"
    if _needs(metric) and metric != "top5_accuracy" and len(seen) < 2 and not _works_on_one(metric):
        return f"needs {split} images of at least two classes"
    if metric == "top5_accuracy" and len(classes) <= 5:
        return f"needs more than 5 classes, got {len(classes)}"
    return None


def custom(space: Space) -> tuple[str, ...]:
    """Return the metrics of other packages that a space names."""
    return tuple(name for name in space.named_metrics if is_custom(name))


def _needs(metric: str) -> bool:
    """Tell whether a metric may have no value on some images."""
    return metric in ("top5_accuracy", "roc_auc", "kappa") or class_of(metric) is not None


def _has_others(number: int, labels: Labels) -> bool:
    """Tell whether some images with several labels lack this one; for one class each, `undefined` checks that."""
    return not label_sets.are_several(labels) or not labels[:, number].all()


def _works_on_one(metric: str) -> bool:
    return class_of(metric) is not None and not metric.startswith("sensitivity@")


def _path(space: Space, metric: str) -> str:
    is_objective = any(metric == name for name, _ in space.objectives)
    return f"study.objectives.{metric}" if is_objective else f"limits.{metric}"
