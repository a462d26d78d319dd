"""Decide which trials continue: pruners are asked at milestones, and decide by recorded epochs only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from imgcls_search.config import Component, TrialConfig
from imgcls_search.signature import Arg, build
from imgcls_search.strategy.early_rungs import EarlyPromoting
from imgcls_search.strategy.rungs import Brackets, Decision, Promoting, Pruner, Rungs, RunToEnd, Stopping, TwoBrackets
from imgcls_search.trial import Trial

Eta = Annotated[int, Arg("one of this many trials passes a rung, and rungs are this factor apart", ge=2)]
MinEpochs = Annotated[int | None, Arg("epochs of the first rung; default: 7.5 % of the epochs, at least 2", ge=1)]
EarlyEpochs = Annotated[int | None, Arg("epochs of the first rung; default: the epochs over eta^3, at least 2", ge=1)]
RevisedEpochs = Annotated[
    int | None,
    Arg(
        "epochs of the first rung; default: the epochs over eta^3, at least 2, or 1 once trials show that the first "
        "epoch orders them nearly as the second does",
        ge=1,
    ),
]

LATEST_SHARE = 0.75
"""Short trainings have no rung beyond this share of their epochs: it would save little, and few trials pass it."""


MOST_EPOCHS_A_SHARE = 1.2
"""If the epochs over eta^3 are more than this, the second epoch is early enough."""


@dataclass(frozen=True, kw_only=True)
class Percentile(RunToEnd):
    """Stops a trial whose best epoch so far is worse than a percentile of the complete trials at the same epoch."""

    percentile: float
    n_startup_trials: int
    n_warmup_epochs: int
    interval: int
    sign: int

    def milestone(self, trial: Trial, others: Sequence[Trial] = ()) -> int:
        """Return the next epoch at which trials are compared."""
        next_one = self.n_warmup_epochs + 1
        while next_one <= trial.epoch:
            next_one += self.interval
        return min(next_one, self.epochs)

    def judge(self, trial: Trial, others: Sequence[Trial]) -> Decision:
        """Prune a trial below the percentile, as Optuna's PercentilePruner and MedianPruner do."""
        done = [other for other in others if other.state == "complete" and not other.candidate.is_fitted]
        there = [self.sign * other.value_at(trial.epoch) for other in done if other.has_value_at(trial.epoch)]
        there = [value for value in there if not math.isnan(value)]
        if len(done) < self.n_startup_trials or not there:
            return "continue"
        import numpy as np

        bar = float(np.percentile(there, 100 - self.percentile))
        shown = [self.sign * trial.value_at(epoch) for epoch in range(1, trial.epoch + 1) if trial.has_value_at(epoch)]
        best = max((value for value in shown if not math.isnan(value)), default=-math.inf)
        return "prune" if best < bar else "continue"


def none(*, epochs: int, sign: int) -> Pruner:
    """Train every trial to its end."""
    return RunToEnd(epochs=epochs)


def halving(*, epochs: int, sign: int, min_epochs: MinEpochs = None, eta: Eta = 3) -> Pruner:
    """Stop a trial at a rung unless it is among the best 1/eta there (Li et al. 2018, the stopping form of ASHA)."""
    return Stopping(epochs=epochs, rungs=_rungs(_first_rung(min_epochs, epochs), epochs, eta), eta=eta, sign=sign)


def asha(*, epochs: int, sign: int, min_epochs: RevisedEpochs = None, eta: Eta = 3) -> Pruner:
    """Pause every trial at each rung and resume the best 1/eta from their checkpoints (Li et al. 2018, algorithm 2)."""
    rungs = _early_rungs(min_epochs, epochs, eta)
    if min_epochs is not None or not rungs or rungs[0] > 2 or epochs > MOST_EPOCHS_A_SHARE * eta**3:
        return Promoting(epochs=epochs, rungs=rungs, eta=eta, sign=sign)
    early = _useful(_rungs(1, epochs, eta), epochs)
    return EarlyPromoting(epochs=epochs, rungs=_useful(rungs, epochs), early=early, eta=eta, sign=sign)


def hyperband(*, epochs: int, sign: int, min_epochs: MinEpochs = None, eta: Eta = 3) -> Pruner:
    """Halve in brackets that start at different rungs (Li et al. 2016), in case early epochs mislead."""
    first = _first_rung(min_epochs, epochs)
    starts = [first * eta**k for k in range(32) if first * eta**k <= epochs] or [epochs]
    each = [_rungs(start, epochs, eta) for start in starts]
    return Brackets(brackets=tuple(Stopping(epochs=epochs, rungs=rungs, eta=eta, sign=sign) for rungs in each))


def brackets(
    *,
    epochs: int,
    sign: int,
    min_epochs: EarlyEpochs = None,
    eta: Eta = 3,
    every: Annotated[int, Arg("one of this many trials starts at the second rung", ge=2)] = 4,
) -> Pruner:
    """Asynchronous halving that resumes, in two of Hyperband's brackets, in case early epochs mislead."""
    return TwoBrackets(epochs=epochs, rungs=_early_rungs(min_epochs, epochs, eta), eta=eta, sign=sign, every=every)


Startup = Annotated[int, Arg("complete trials before anything is pruned", ge=0)]
Warmup = Annotated[int, Arg("first epochs of a trial in which it is not pruned", ge=0)]
Interval = Annotated[int, Arg("epochs from one comparison to the next", ge=1)]


def median(
    *, epochs: int, sign: int, n_startup_trials: Startup = 5, n_warmup_epochs: Warmup = 0, interval: Interval = 1
) -> Pruner:
    """Stop a trial whose best epoch is worse than the median of the complete trials at this epoch."""
    return percentile(
        epochs=epochs,
        sign=sign,
        percentile=50.0,
        n_startup_trials=n_startup_trials,
        n_warmup_epochs=n_warmup_epochs,
        interval=interval,
    )


def percentile(
    *,
    epochs: int,
    sign: int,
    percentile: Annotated[float, Arg("share of the complete trials that count as good, percent", gt=0, lt=100)] = 25.0,
    n_startup_trials: Startup = 5,
    n_warmup_epochs: Warmup = 0,
    interval: Interval = 1,
) -> Pruner:
    """Stop a trial whose best epoch is outside the best percentile of the complete trials at this epoch."""
    return Percentile(
        epochs=epochs,
        sign=sign,
        percentile=percentile,
        n_startup_trials=n_startup_trials,
        n_warmup_epochs=n_warmup_epochs,
        interval=interval,
    )


PRUNERS: Mapping[str, Callable[..., Pruner]] = {
    "none": none,
    "median": median,
    "percentile": percentile,
    "halving": halving,
    "asha": asha,
    "hyperband": hyperband,
    "brackets": brackets,
}
"""Builders take the number of `epochs` and the `sign` of the objective: 1 to maximize, -1 to minimize."""


def make_pruner(component: Component, config: TrialConfig, sign: int) -> Pruner:
    """Build the pruner of a search whose trials train for the epochs of `config`; `sign` as in `PRUNERS`."""
    if config.is_pretraining and component.args.get("min_epochs", 1) is None:
        component = replace(component, args={**component.args, "min_epochs": late_rung(config.epochs)})
    pruner: Pruner = build(PRUNERS, component, epochs=config.epochs, sign=sign)
    return pruner if config.folds == 1 else at_fold_ends(pruner, config.epochs // config.folds)


def late_rung(epochs: int) -> int:
    """Return the first rung of a search over the pretraining, a third of the epochs.

    Before it, the ranking misleads: a view that shows more of an image is ahead early, and behind at the end.
    """
    return max(1, round(epochs / 3))


def at_fold_ends(pruner: Pruner, each: int) -> Pruner:
    """Return a pruner whose rungs beyond the first fold are at the end of one; each fold takes `each` epochs.

    There a trial's value is a plain mean of finished networks, and none pauses in the middle of its training.
    """
    if isinstance(pruner, Brackets):
        brackets = [at_fold_ends(bracket, each) for bracket in pruner.brackets]
        return replace(pruner, brackets=tuple(found for found in brackets if isinstance(found, Stopping)))
    if not isinstance(pruner, Rungs):
        return pruner

    def ends(rungs: Sequence[int]) -> tuple[int, ...]:
        moved = [rung if rung <= each else round(rung / each) * each for rung in rungs]
        return tuple(dict.fromkeys(end for end in moved if end < pruner.epochs))

    if isinstance(pruner, EarlyPromoting):
        return replace(pruner, rungs=ends(pruner.rungs), early=ends(pruner.early))
    return replace(pruner, rungs=ends(pruner.rungs))


def _first_rung(min_epochs: int | None, epochs: int) -> int:
    return min_epochs if min_epochs is not None else max(2, round(0.075 * epochs))


def _rungs(first: int, epochs: int, eta: int) -> tuple[int, ...]:
    return tuple(first * eta**k for k in range(32) if first * eta**k < epochs)


def _early_rungs(min_epochs: int | None, epochs: int, eta: int) -> tuple[int, ...]:
    # If trials pause instead of ending, an early rung costs less: a misjudged trial may still continue.
    return _rungs(min_epochs if min_epochs is not None else max(2, round(epochs / eta**3)), epochs, eta)


def _useful(rungs: tuple[int, ...], epochs: int) -> tuple[int, ...]:
    """Return the first rung and those that are not too near the end."""
    return (*rungs[:1], *(rung for rung in rungs[1:] if rung <= LATEST_SHARE * epochs))
