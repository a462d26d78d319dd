"""How certain a score is: intervals over seeds and images, and how much of a searched score was luck.

A search picks the best of many noisy scores, which was mostly lucky too (the winner's curse). Scores of fresh seeds
have no such luck, unless the best of them is picked again; so a winner is scored on seeds that did not pick it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

LEVEL = 0.95
"""How often an interval contains the true value."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and the half-width of its interval."""

    mean: float
    half: float
    std: float
    """Standard deviation of a single training."""


class Interval(TypedDict):
    """The mean of some values, their standard deviation and the half-width of its interval; None for a single value."""

    mean: float
    std: float | None
    ci95: float | None


def interval(values: Sequence[float]) -> Interval:
    """Return the mean, the standard deviation and the half-width of the 95 % interval (Student's t) of some values."""
    n = len(values)
    std = statistics.stdev(values) if n > 1 else None
    half = t_quantile(n - 1) * std / math.sqrt(n) if std is not None else None
    return {"mean": statistics.fmean(values), "std": std, "ci95": half}


def t_quantile(freedom: float) -> float:
    """Return the two-sided 95 % quantile of Student's t."""
    from scipy.stats import t

    return float(t.ppf((1 + LEVEL) / 2, freedom))


def estimate(fresh: Sequence[float], choosing: Sequence[float]) -> Estimate:
    """Estimate the mean score of a winner from fresh scores; `choosing` are the scores that it was picked by.

    The mean uses only the fresh scores, so that the choice cannot raise it. The deviation also uses the choosing ones:
    for normal noise the deviation of scores is independent of their mean, which decided the choice.
    """
    freedom = len(fresh) + len(choosing) - 2
    squares = sum((len(part) - 1) * statistics.variance(part) for part in (fresh, choosing))
    std = math.sqrt(squares / freedom)
    return Estimate(mean=statistics.fmean(fresh), half=t_quantile(freedom) * std / math.sqrt(len(fresh)), std=std)


def difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Return how much higher the mean of the first is, with Welch's interval."""
    parts = [statistics.variance(values) / len(values) for values in (first, second)]
    error = math.sqrt(sum(parts))
    mean = statistics.fmean(first) - statistics.fmean(second)
    if error == 0:
        return Estimate(mean=mean, half=0.0, std=0.0)
    freedom = error**4 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True))
    return Estimate(mean=mean, half=t_quantile(freedom) * error, std=error)


def optimism(searched: float, fresh: Estimate, sign: int) -> Estimate:
    """Return how much better a searched score was than fresh trainings of the same configuration on average."""
    return Estimate(mean=sign * (searched - fresh.mean), half=fresh.half, std=fresh.std)


def share_interval(share: float, count: int) -> tuple[float, float]:
    """Return Wilson's interval of a share of `count` images."""
    z = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    # Rounding may put an end of the interval beyond a share of exactly 0 or 1.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))
