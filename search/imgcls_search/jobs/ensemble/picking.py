"""Greedy selection with replacement of the members of an ensemble (Caruana et al. 2004)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

Worth = Callable[[Array], tuple[float, ...]]
"""Returns what probabilities [N, classes] are worth: the larger, the better; later numbers decide between equals."""


@dataclass(frozen=True, kw_only=True)
class Picked:
    """What was picked."""

    order: tuple[int, ...]
    """The place of each pick among the candidates, the first pick first; one may come several times."""

    worth: tuple[float, ...]
    """Of the ensemble of these picks."""

    @property
    def counts(self) -> dict[int, int]:
        """How often each was picked, the most frequent first, then the earliest."""
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
    """Return the best ensemble among those of 1 to `picks` picks, the smallest of equals.

    The first pick is given, as an ensemble that begins with the best single network fits the validation images less
    closely than one that is free from the start. Each later pick is the candidate with which the mean of the
    probabilities is worth most; the earliest of equals, but one that is picked already comes after all others.
    `on_pick` takes how many picks are made.
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
