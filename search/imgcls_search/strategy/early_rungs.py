"""Promotion whose rungs begin earlier once trials show that early epochs rank them as later ones do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imgcls_search.strategy.rungs import Promoting
from imgcls_search.trial import Trial

AGREEMENT = 0.8
"""Rank correlation between two epochs at which the earlier one may stop trials."""

WEAK = 0.6
"""If two epochs agree less than this, the first witnesses continue to the second rung, to compare that too."""

UNRELIABLE = 0.5
"""If the first two rungs agree less than this, trials begin at the second."""

FIRST_WITNESSES = 6
"""This many first trials are witnesses: they train beyond the first epoch, whatever it shows. Fewer decide nothing."""

WITNESS_ONE_IN = 12
"""One of this many later trials is a witness too: trials that passed a rung say nothing about those held back there."""


@dataclass(frozen=True, kw_only=True)
class EarlyPromoting(Promoting):
    """Promotion whose rungs begin as early as the ranking there is shown to be reliable.

    Witnesses, which are chosen only by number, skip the earliest rung. The decision follows from their recorded epochs,
    so that each new witness revises it, and it is the same after a restart.
    """

    early: tuple[int, ...]
    """The rungs that begin earlier than `rungs`."""

    def milestone(self, trial: Trial, others: Sequence[Trial] = ()) -> int:
        """Return the next rung, or the last epoch when no rung is left."""
        now = self.now(others)
        if trial.epoch == 0 and is_witness(trial):
            return max(self.rungs[0], now[0])
        return next((rung for rung in now if rung > trial.epoch), self.epochs)

    def promote(self, trials: Sequence[Trial]) -> Trial | None:
        """Return a witness that must train further, or the best paused trial of the highest rung that promotes one."""
        if self._is_in_doubt(trials):
            waiting = [trial for trial in trials[:FIRST_WITNESSES] if is_witness(trial) and trial.state == "paused"]
            if (witness := next((trial for trial in waiting if trial.epoch < self.rungs[1]), None)) is not None:
                return witness
        return self.ladder.promote(trials, self.now(trials))

    def now(self, trials: Sequence[Trial]) -> tuple[int, ...]:
        """Return the rungs, beginning with the first that ranks witnesses as later epochs do, as far as is known."""
        agreement = self._agreement(trials, self.early[0], self.rungs[0])
        if agreement is None or WEAK <= agreement < AGREEMENT:
            return self.rungs
        if agreement >= AGREEMENT:
            return self.early
        later = self._agreement(trials, *self.rungs[:2]) if len(self.rungs) > 1 else None
        return self.rungs if later is None or later >= UNRELIABLE else self.rungs[1:]

    def _is_in_doubt(self, trials: Sequence[Trial]) -> bool:
        """Tell whether the first two rungs are to be compared but cannot be yet."""
        if len(self.rungs) < 2 or self._agreement(trials, *self.rungs[:2]) is not None:
            return False
        agreement = self._agreement(trials, self.early[0], self.rungs[0])
        return agreement is not None and agreement < WEAK

    def _agreement(self, trials: Sequence[Trial], first: int, second: int) -> float | None:
        """Return how well two epochs agree in ranking the witnesses; None if too few have reached the second."""
        there = [trial for trial in trials if is_witness(trial) and trial.was_judged_at(second)]
        there = [trial for trial in there if trial.has_value_at(first)]
        if len(there) < FIRST_WITNESSES:
            return None
        return _agreement(*([self.sign * trial.value_at(rung) for trial in there] for rung in (first, second)))


def is_witness(trial: Trial) -> bool:
    """Tell whether a trial skips an early first rung, whatever others show."""
    return trial.number < FIRST_WITNESSES or trial.number % WITNESS_ONE_IN == WITNESS_ONE_IN - 1


def _agreement(before: Sequence[float], after: Sequence[float]) -> float:
    """Return the rank correlation of two epochs; NaN ranks last, and 0 means that an epoch has equal values only."""
    import numpy as np
    from scipy.stats import rankdata

    values = np.array([before, after], dtype=float)
    ranks = rankdata(np.where(np.isnan(values), -np.inf, values), axis=1)
    if (ranks == ranks[:, :1]).all(axis=1).any():
        return 0.0
    return float(np.corrcoef(ranks)[0, 1])
