"""Costs of decisions, by true and by predicted class, and which decision costs least.

Costs that are not stated are 1 for a wrong class; the right class costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from imgcls_search.errors import closest
from imgcls_search.words import some

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Costs = Mapping[str, Mapping[str, float]]
"""True class -> predicted class -> cost."""

UNSTATED = 1.0
"""The cost of a wrong class that is not stated."""


def of(tree: Mapping[str, Any]) -> Costs | None:
    """Return the costs that a configuration states, or None if it states none or is of an older version."""
    found: Costs | None = tree.get("predict", {}).get("costs")
    return found


def problem(costs: Costs, classes: Sequence[str] | None = None) -> tuple[str, str] | None:
    """Return the path below `costs` and the problem there, or None if the costs are valid.

    Names are looked up among the `classes`, if these are known.
    """
    for true, row in costs.items():
        for name, path in ((true, true), *((predicted, f"{true}.{predicted}") for predicted in row)):
            if classes is not None and name not in classes:
                return path, f"there is no class {name!r}; classes: {some(classes, 20)}{closest(name, classes)}"
        if row.get(true):
            return (
                f"{true}.{true}",
                f"{true}.{true}: {row[true]:g} is not allowed: the right class costs nothing; allowed: 0",
            )
    return None


def matrix(costs: Costs, classes: Sequence[str]) -> Array:
    """Return costs as a matrix [true class, predicted class], in double precision."""
    import numpy as np

    found = UNSTATED * (1 - np.eye(len(classes)))
    numbers = {name: number for number, name in enumerate(classes)}
    for true, row in costs.items():
        for predicted, cost in row.items():
            found[numbers[true], numbers[predicted]] = cost
    return found


def expected(probabilities: Array, costs: Array) -> Array:
    """Return the expected cost [N, classes] of each decision, from probabilities [N, classes] and a matrix of costs."""
    found: Array = probabilities @ costs
    return found


def ranked(probabilities: Array, costs: Array | None) -> Array:
    """Return class numbers [N, classes], the best decision first: the likeliest, or that of least expected cost.

    Ties go to the likelier class, then to the first.
    """
    import numpy as np

    if costs is None:
        return np.argsort(-probabilities, axis=1, kind="stable")
    # Sums of many products differ by rounding, which must not decide ties.
    return np.lexsort((-probabilities, expected(probabilities, costs).round(12)), axis=1)


def decided(probabilities: Array, costs: Array | None) -> Array:
    """Return the number of the chosen class [N] for each image."""
    found: Array = probabilities.argmax(axis=1) if costs is None else ranked(probabilities, costs)[:, 0]
    return found
