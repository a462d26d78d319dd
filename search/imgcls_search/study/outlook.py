"""Estimate what continuing a search is likely to gain, from the values found so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from imgcls_search.measures import sign_of
from imgcls_search.study.record import Record
from imgcls_search.trial import Trial

LEAST_TRIALS = 10
"""Ended trials that an estimate needs at least."""


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """The likely gain from doubling the number of trials."""

    metric: str
    trials: int
    """Ended trials that the estimate is based on."""

    gain: float
    """The most that doubling the trials is likely to add to the best value, in the metric's own unit."""


def outlook(record: Record) -> Outlook | None:
    """Estimate the gain from doubling the number of trials; None for several objectives or too few trials or values.

    The last doubling gained the best of all values minus the expected best of a random half (the unbiased estimate of
    Tang et al. 2020, "Showing Your Work Doesn't Always Work"). For independent draws of bounded values, such as
    accuracies, the next doubling gains no more than the last. A sampler that learns does better in later trials: if the
    gain over the first half is larger than over a random half, it counts instead. Pruned and paused trials count with
    their last value, but at most with the best value of a complete trial.
    """
    ended = [trial for trial in record.trials if trial.state not in ("running", "fail")]
    complete = [trial for trial in ended if trial.state == "complete" and trial.is_feasible]
    if len(record.objectives) > 1 or len(ended) < LEAST_TRIALS or not complete:
        return None
    ((metric, direction),) = record.objectives
    sign = sign_of(direction)
    top = max(_value(trial, sign) for trial in complete)
    values = [min(top, _value(trial, sign)) for trial in ended]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    values = [value if math.isfinite(value) else min(finite) for value in values]
    half = len(values) // 2
    gain = top - min(expected_best(values, half), max(values[:half]))
    return Outlook(metric=metric, trials=len(values), gain=gain)


def expected_best(values: Sequence[float], count: int) -> float:
    """Return the mean of the maximum over all subsets of `count` values."""
    ordered, expected = sorted(values), 0.0
    # Probability that the maximum is at index `place`: C(place, count - 1) / C(n, count), from the last index down.
    share = count / len(values)
    for place in range(len(values) - 1, count - 2, -1):
        expected += share * ordered[place]
        share *= (place - count + 1) / max(place, 1)
    return expected


def _value(trial: Trial, sign: int) -> float:
    if trial.state == "complete":
        return sign * (trial.values or (math.nan,))[0] if trial.is_feasible else -math.inf
    return sign * trial.value_at(trial.last_shown) if trial.last_shown else -math.inf
