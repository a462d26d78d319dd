"""What going on with a search is likely to gain, told from the values that it has found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from imgcls_search.study.record import Record
from imgcls_search.trial import Trial

LEAST_TRIALS = 10
"""Ended trials with a value before anything is said."""


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What as many trials again may bring."""

    metric: str
    trials: int
    """Ended trials that this is computed from."""

    gain: float
    """The most that as many again are likely to add to the best value, in the metric's own unit."""


def outlook(record: Record) -> Outlook | None:
    """Return what as many trials again are likely to gain; None for several objectives, or before there is a basis.

    The last doubling of the trials was worth the best of all values less what the best of half of them, chosen at
    random, is expected to be (the unbiased estimate of Tang et al. 2020, "Showing Your Work Doesn't Always Work"). The
    best of independent draws of bounded values, such as accuracies, gains no more by the next doubling than by the
    last. A sampler that learns does better in later trials: where the best of all is further above that of the first
    half than above a random half, that difference counts. A trial that was pruned or rests stands with its last value,
    or with the best where it showed more than that.
    """
    ended = [trial for trial in record.trials if trial.state not in ("running", "fail")]
    complete = [trial for trial in ended if trial.state == "complete" and trial.is_feasible]
    if len(record.objectives) > 1 or len(ended) < LEAST_TRIALS or not complete:
        return None
    ((metric, direction),) = record.objectives
    sign = 1 if direction == "maximize" else -1
    top = max(_value(trial, sign) for trial in complete)
    values = [min(top, _value(trial, sign)) for trial in ended]
    finite = [value for value in values if math.isfinite(value)]
    values = [value if math.isfinite(value) else min(finite) for value in values]
    half = len(values) // 2
    gain = top - min(expected_best(values, half), max(values[:half]))
    return Outlook(metric=metric, trials=len(values), gain=gain)


def expected_best(values: Sequence[float], count: int) -> float:
    """Return the mean of the largest of `count` of the values, over all ways to choose them."""
    ordered, expected = sorted(values), 0.0
    # The probability that the largest of the chosen stands at a place: C(place, count - 1) / C(n, count), from above.
    share = count / len(values)
    for place in range(len(values) - 1, count - 2, -1):
        expected += share * ordered[place]
        share *= (place - count + 1) / max(place, 1)
    return expected


def _value(trial: Trial, sign: int) -> float:
    if trial.state == "complete":
        return sign * (trial.values or (math.nan,))[0] if trial.is_feasible else -math.inf
    return sign * trial.value_at(trial.last_shown) if trial.last_shown else -math.inf
