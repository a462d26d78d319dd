"""Stop trials with several objectives: a trial ends when even an optimistic continuation of it would be beaten."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from imgcls_search.measures import bounds, sign_of
from imgcls_search.space import Space
from imgcls_search.strategy.pruners import PRUNERS, make_pruner
from imgcls_search.strategy.rungs import Decision, Pruner
from imgcls_search.trial import MEASURED, SIZES, Trial

LEAST_CURVES = 10
"""Complete trials that a rung needs before any trial is stopped there."""

CONFIDENCE = 0.99
"""Probability that one more curve like the others ends below the optimistic continuation."""

NEAREST = 1e-4
"""Distance to the ideal that counts as zero."""


@dataclass(frozen=True, kw_only=True)
class Dominance:
    """Stops a trial at a rung when a complete, feasible one beats its costs and its optimistic continuation.

    Costs that are known before training are used as they are. A learned metric is continued by what complete trials
    gained between this rung and the end, in two ways of which the more optimistic counts: as a part of the distance to
    the ideal (1 for a share, 0 for a loss; a metric without an ideal stops no trial), and as a difference. Each way
    uses the largest gain of any trial or, if that is larger, the upper bound of the prediction interval for one more
    trial (Student's t); with few curves that interval is wide.
    """

    rungs: Pruner
    """Decides at which epochs trials are judged."""

    objectives: tuple[tuple[str, str], ...]
    """Metrics and directions: at least one is measured every epoch, the others are known before training."""

    def milestone(self, trial: Trial, others: Sequence[Trial] = ()) -> int:
        """Return the next rung."""
        return self.rungs.milestone(trial)

    def judge(self, trial: Trial, others: Sequence[Trial]) -> Decision:
        """Prune a trial whose optimistic continuation would not be on the front."""
        done = [other for other in others if other.state == "complete"]
        hoped = [self._hoped(trial, done, index) for index in range(len(self.objectives))]
        ends = [[self._goodness(index, value) for index, value in enumerate(other.values or ())] for other in done]
        beaten = any(other.is_feasible and _beats(end, hoped) for other, end in zip(done, ends, strict=True))
        return "prune" if beaten else "continue"

    def promote(self, trials: Sequence[Trial]) -> Trial | None:
        """Return None: no trial is ever paused."""
        return None

    def _goodness(self, index: int, value: float) -> float:
        return sign_of(self.objectives[index][1]) * value

    def _hoped(self, trial: Trial, done: Sequence[Trial], index: int) -> float:
        """Return the optimistic final value of an objective, larger is better; infinity if too little is known."""
        metric, direction = self.objectives[index]
        if metric in SIZES:
            return self._goodness(index, trial.sizes[metric])
        there = [
            (t.shown_at(trial.epoch)[metric], t.values[index])
            for t in done
            if t.values and not t.candidate.is_fitted and _shows(t, trial, metric)
        ]
        if len(there) < LEAST_CURVES or not _shows(trial, trial, metric):
            return math.inf
        sign, limits = sign_of(direction), bounds(metric)
        ideal = math.inf if limits is None else limits[direction == "maximize"]
        if not math.isfinite(ideal):
            return math.inf
        own = trial.shown_at(trial.epoch)[metric]
        before, after = ([abs(ideal - pair[side]) for pair in there] for side in (0, 1))
        if any((ideal - value) * sign < 0 for pair in (*there, (own, own)) for value in pair):
            return math.inf
        start = abs(ideal - own)
        part = _most([math.log(max(a, NEAREST) / max(b, NEAREST)) for b, a in zip(before, after, strict=True)])
        difference = _most([a - b for b, a in zip(before, after, strict=True)])
        left = min(start * math.exp(part), start + difference)
        return self._goodness(index, ideal - sign * left if left > NEAREST else ideal)


def choose_pruner(space: Space, sign: int, say: Callable[[str], None]) -> tuple[Pruner, str]:
    """Return a search's pruner, and why it stops a trial; report if several objectives change how it works."""
    name, objectives, config = space.pruner.name, space.objectives, space.first()
    pruner = make_pruner(space.pruner, config, sign)
    why_not = why_all_train_on(objectives) if name != "none" else None
    if why_not is not None:
        say(f"{why_not}; every trial trains to its end")
        return PRUNERS["none"](epochs=config.epochs, sign=sign), ""
    if name == "none" or len(objectives) == 1:
        return pruner, f"pruned by {name}"
    say(
        f"several objectives: at the rungs of {name}, a trial is stopped if another one would beat it at its own cost "
        "even after an optimistic continuation"
    )
    return Dominance(rungs=pruner, objectives=objectives), "even an optimistic continuation is beaten at its cost"


def why_all_train_on(objectives: Sequence[tuple[str, str]]) -> str | None:
    """Return briefly why no trial can be stopped early for these objectives, or None if some can."""
    metrics = [metric for metric, _ in objectives]
    if all(metric in SIZES or metric in MEASURED for metric in metrics):
        return f"{', '.join(metrics)}: not learned from epoch to epoch"
    late = [metric for metric in metrics if metric in MEASURED]
    return f"{', '.join(late)}: known only at the end of a trial" if late else None


def _most(changes: Sequence[float]) -> float:
    """Return the most negative value that one more change is likely to have."""
    import numpy as np
    from scipy.special import stdtrit

    count, changed = len(changes), np.array(changes)
    reach = float(stdtrit(count - 1, CONFIDENCE)) * changed.std(ddof=1) * math.sqrt(1 + 1 / count)
    return float(min(changed.min(), changed.mean() - reach))


def _shows(trial: Trial, judged: Trial, metric: str) -> bool:
    return math.isfinite(trial.shown_at(judged.epoch).get(metric, math.nan))


def _beats(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x >= y for x, y in zip(a, b, strict=True)) and any(x > y for x, y in zip(a, b, strict=True))
