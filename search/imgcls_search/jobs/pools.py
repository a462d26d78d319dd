"""Compare strategies by many replays on parts of the same recorded trainings, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgcls_search.words import counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Bests = Sequence[tuple[int, float]]
"""Epochs of all trials together, and the best complete trial's value from then on."""

RESAMPLES = 2000
COVERED = 0.9
"""Coverage of an interval."""

SEED = 0
"""Seed of the resamples: the same searches always give the same intervals."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its 90 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PoolSearch:
    """One search on one pool, with the expected result of random search on the same pool."""

    bests: Bests
    expected: float
    """Expected best of as many random full trainings as the budget allows."""


def expected_best(values: Sequence[float], count: int, sign: int = 1) -> float:
    """Return the exact expectation of the best of `count` values drawn without replacement; NaN counts as the worst.

    Raises:
        ValueError: `count` is not between 1 and the number of values, or all values are NaN.
    """
    known = sorted(sign * value for value in values if not math.isnan(value))
    if not 1 <= count <= len(values) or not known:
        raise ValueError(f"the best of {count} of {counted('value', len(values))}, {len(known)} of them known")
    ordered = [known[0]] * (len(values) - len(known)) + known
    whole = math.comb(len(ordered), count)
    # A place has the best if all others are drawn from the places below it.
    shares = (math.comb(place, count - 1) / whole for place in range(len(ordered)))
    return sign * sum(share * value for share, value in zip(shares, ordered, strict=True))


def gains(searches: Sequence[PoolSearch], budget: int, sign: int = 1) -> Array:
    """Return [searches, budget + 1]: how far the best so far is above random search's end; NaN before the first one."""
    import numpy as np

    found = np.full((len(searches), budget + 1), np.nan)
    for row, search in zip(found, searches, strict=True):
        for spent, value in search.bests:
            row[spent:] = sign * (value - search.expected)
    return found


def speed(mean_gain: Array) -> float:
    """Return how many times fewer epochs than random search it takes to reach its end; 0 if that is not reached.

    Until every search has a complete trial, the mean is NaN and nothing is reached.
    """
    import numpy as np

    reached = np.flatnonzero(mean_gain >= 0)
    return (len(mean_gain) - 1) / max(1, int(reached[0])) if len(reached) else 0.0


def estimate(samples: Array, figure: Callable[[Array], float]) -> Estimate:
    """Return a figure of samples [searches, ...] and its interval, by bootstrap over the searches."""
    import numpy as np

    rng = np.random.default_rng(SEED)
    again = [figure(samples[rng.integers(len(samples), size=len(samples))]) for _ in range(RESAMPLES)]
    low, high = np.quantile(again, [(1 - COVERED) / 2, (1 + COVERED) / 2])
    return Estimate(value=figure(samples), low=float(low), high=float(high))


def speed_of(searches: Sequence[PoolSearch], budget: int, sign: int = 1) -> Estimate:
    """Return the speed of a strategy over many pools."""
    return estimate(gains(searches, budget, sign), lambda drawn: speed(drawn.mean(axis=0)))


def end_of(searches: Sequence[PoolSearch], budget: int, sign: int = 1) -> Estimate:
    """Return how far a strategy ends above random search, in the metric's unit."""
    return estimate(gains(searches, budget, sign)[:, -1], _mean)


def difference(ours: Sequence[PoolSearch], others: Sequence[PoolSearch], budget: int, sign: int = 1) -> Estimate:
    """Return how far a strategy ends above another one on the same pools, pool by pool."""
    return estimate(gains(ours, budget, sign)[:, -1] - gains(others, budget, sign)[:, -1], _mean)


def _mean(values: Array) -> float:
    return float(values.mean())
