"""Metrics of other packages: functions (probabilities, labels) -> float, registered as entry points."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import numpy as np

from imgcls_search import own_code
from imgcls_search.errors import UserError, first_line
from imgcls_search.measures import KNOWN, class_of
from imgcls_search.trial import MEASURED, SIZES

ENTRY_POINTS = "imgcls_search.metrics"
"""The entry point group for metrics: `cost = "package.module:function"`."""

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")

Array = np.ndarray[Any, Any]
Metric = Callable[[Array, Array], Any]


@cache
def installed() -> Mapping[str, EntryPoint]:
    """Return the metrics of installed packages, without importing them.

    Raises:
        UserError: a name is taken or not allowed.
    """
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        if not NAME.fullmatch(entry.name):
            allowed = "a letter, then letters, digits, '_' or '-'"
            raise UserError(f"the package {_package(entry)} adds a metric {entry.name!r}; allowed: {allowed}")
        ours = {*KNOWN, *SIZES, *MEASURED, "epoch", "seconds", "train_loss"}
        if entry.name in {*ours, *found}:
            raise UserError(
                f"the package {_package(entry)} adds a metric {entry.name!r}, but there is one of that name"
            )
        found[entry.name] = entry
    return found


def is_custom(name: str) -> bool:
    """Tell whether a metric comes from another package, or is the user's own function, `module:name`."""
    return name in installed() or is_own_function(name)


def is_own_function(name: str) -> bool:
    """Tell whether a metric is the user's own function, `module:name`, and not a metric of a class."""
    return class_of(name) is None and own_code.is_reference(name)


def sentences() -> dict[str, str]:
    """Return a sentence about each metric of another package."""
    return {name: f"a metric of the package {_package(entry)}" for name, entry in installed().items()}


def measure(name: str, probabilities: Array, labels: Array) -> float:
    """Return the value of a metric for probabilities [N, classes], double precision, and class numbers [N].

    With several labels per image, both are [N, labels], and the labels are 0 or 1.

    Raises:
        UserError: the metric cannot be loaded, fails, or does not return a finite number.
    """
    metric = load(name)
    try:
        # Pass copies, because the metric may change its arguments.
        value = float(metric(probabilities.copy(), labels.copy()))
    except Exception as error:
        raise UserError(f"{_title(name)} failed ({type(error).__name__}: {first_line(error, 'no message')})") from error
    if not math.isfinite(value):
        raise UserError(f"{_title(name)} gave {value}; allowed: a finite number")
    return value


def try_on(names: Collection[str], classes: int, labels: Array) -> None:
    """Call metrics with some labels and random probabilities, to show mistakes before training.

    Raises:
        UserError: a metric cannot be loaded, fails, or does not return a finite number.
    """
    random = np.random.default_rng(0)
    chances: Array = random.dirichlet(np.ones(classes), len(labels))
    if labels.ndim == 2:
        chances = np.asarray(random.random(labels.shape))
    labels = labels.astype(np.int64)
    for name in names:
        if is_custom(name):
            measure(name, chances, labels)


def versions() -> dict[str, str]:
    """Return the versions of the packages that add metrics."""
    packages = [entry.dist for entry in installed().values() if entry.dist is not None]
    return {package.name: package.version for package in packages}


@cache
def load(name: str) -> Metric:
    """Import a metric.

    Raises:
        UserError: it cannot be imported, or is not a function.
    """
    if name not in installed():
        try:
            own: Metric = own_code.load(name)
        except UserError as error:
            raise UserError(f"the metric {error}") from error
        return own
    try:
        found = installed()[name].load()
    # Importing a foreign module may raise anything.
    except Exception as error:
        raise UserError(
            f"{_title(name)} cannot be loaded ({type(error).__name__}: {first_line(error, 'no message')}); "
            "fix or remove that package"
        ) from error
    if not callable(found):
        raise UserError(f"{_title(name)} is not a function; allowed: (probabilities, labels) -> float")
    metric: Metric = found
    return metric


def _title(name: str) -> str:
    entry = installed().get(name)
    return f"the metric {name!r}" if entry is None else f"the metric {name!r} of the package {_package(entry)}"


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value
