"""Greedy selection with replacement of the members of an ensemble (Caruana et al. 2004)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

Worth = Callable[[Array], tuple[float, ...]]
"""Returns the value of probabilities [N, classes]: larger is better, later numbers break ties."""


@dataclass(frozen=True, kw_only=True)
class Picked:
    """The picked ensemble."""

    order: tuple[int, ...]
    """Index of each pick among the candidates, in order; a candidate may occur several times."""

    worth: tuple[float, ...]
    """Value of the ensemble of these picks."""

    @property
    def counts(self) -> dict[int, int]:
        """How often each candidate was picked, most frequent first, then earliest first."""
        counts = {place: self.order.count(place) for place in dict.fromkeys(self.order)}
        return dict(sorted(counts.items(), key=lambda item: -item[1]))


def pick(
    probabilities: Sequence[Array],
    *,
    picks: int,
    first: int,
    worth: Worth,
    on_pick: Callable[[int], None] = lambda count: None,
) -> Picked:
    """Return the best ensemble of 1 to `picks` picks; of equally good ones, the smallest.

    The first pick is given: an ensemble that starts with the best single network overfits the validation images less
    than one with a free first pick. Each later pick is the candidate that gives the mean probabilities the highest
    value. Ties go to candidates that were not picked before, then to the earliest. `on_pick` gets the number of picks
    so far.
    """
    order, total = [first], probabilities[first].astype(np.float64)
    steps = [worth(total)]
    while len(order) < picks:
        count = len(order) + 1
        worths = [worth((total + found) / count) for found in probabilities]
        place = max(range(len(worths)), key=lambda number: (worths[number], number not in order, -number))
        total = total + probabilities[place]
        order.append(place)
        steps.append(worths[place])
        on_pick(len(order))
    best = max(range(len(steps)), key=lambda number: (steps[number], -number))
    return Picked(order=tuple(order[: best + 1]), worth=steps[best])
