"""Promotion whose rungs begin earlier once trials show that early epochs order them as later ones do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imgcls_search.strategy.rungs import Promoting
from imgcls_search.trial import Trial

AGREEMENT = 0.8
"""Rank correlation between two epochs from which on the earlier one may stop trials."""

WEAK = 0.6
"""Where two epochs agree less than this, the first witnesses go on to the second rung, so that it is compared too."""

UNRELIABLE = 0.5
"""Where the first two rungs agree less than this, trials begin at the second."""

FIRST_WITNESSES = 6
"""So many first trials go beyond the first epoch, whatever it shows, and fewer decide nothing;"""

WITNESS_ONE_IN = 12
"""so does one of so many later ones: what passed a rung at the first epoch says nothing of those that it holds back."""


@dataclass(frozen=True, kw_only=True)
class Revising(Promoting):
    """Promotion whose rungs begin as early as trials show that the order there can be relied on.

    Witnesses, which are chosen by number alone, pass over the earliest rung. The answer follows from what is recorded
    of them, so that it is revised with each new one, and the same after a restart.
    """

    early: tuple[int, ...]
    """The rungs that begin earlier than `rungs` do."""

    def milestone(self, trial: Trial, others: Sequence[Trial] = ()) -> int:
        """Return the next rung, or the last epoch when no rung is left."""
        now = self.now(others)
        if trial.epoch == 0 and is_witness(trial):
            return max(self.rungs[0], now[0])
        return next((rung for rung in now if rung > trial.epoch), self.epochs)

    def promote(self, trials: Sequence[Trial]) -> Trial | None:
        """Return a witness that is to show more, or the best paused trial of the highest rung that lets one pass."""
        if self._is_in_doubt(trials):
            waiting = [trial for trial in trials[:FIRST_WITNESSES] if is_witness(trial) and trial.state == "paused"]
            if (witness := next((trial for trial in waiting if trial.epoch < self.rungs[1]), None)) is not None:
                return witness
        return self.ladder.promote(trials, self.now(trials))

    def now(self, trials: Sequence[Trial]) -> tuple[int, ...]:
        """Return the rungs from the first at which witnesses stand as they do later, as far as they have shown it."""
        agreement = self._agreement(trials, self.early[0], self.rungs[0])
        if agreement is None or WEAK <= agreement < AGREEMENT:
            return self.rungs
        if agreement >= AGREEMENT:
            return self.early
        later = self._agreement(trials, *self.rungs[:2]) if len(self.rungs) > 1 else None
        return self.rungs if later is None or later >= UNRELIABLE else self.rungs[1:]

    def _is_in_doubt(self, trials: Sequence[Trial]) -> bool:
        """Tell whether the first two rungs are to be compared and cannot be yet."""
        if len(self.rungs) < 2 or self._agreement(trials, *self.rungs[:2]) is not None:
            return False
        agreement = self._agreement(trials, self.early[0], self.rungs[0])
        return agreement is not None and agreement < WEAK

    def _agreement(self, trials: Sequence[Trial], first: int, second: int) -> float | None:
        """Return how nearly two epochs order the witnesses; None where too few have come so far."""
        there = [trial for trial in trials if is_witness(trial) and trial.was_judged_at(second)]
        there = [trial for trial in there if trial.has_value_at(first)]
        if len(there) < FIRST_WITNESSES:
            return None
        return _agreement(*([self.sign * trial.value_at(rung) for trial in there] for rung in (first, second)))


def is_witness(trial: Trial) -> bool:
    """Tell whether a trial passes over an early first rung, whatever others show."""
    return trial.number < FIRST_WITNESSES or trial.number % WITNESS_ONE_IN == WITNESS_ONE_IN - 1


def _agreement(before: Sequence[float], after: Sequence[float]) -> float:
    """Return the rank correlation of two epochs ; what has no order stands last, 0 where all are equal."""
    import numpy as np
    from scipy.stats import rankdata

    values = np.array([before, after], dtype=float)
    ranks = rankdata(np.where(np.isnan(values), -np.inf, values), axis=1)
    if (ranks == ranks[:, :1]).all(axis=1).any():
        return 0.0
    return float(np.corrcoef(ranks)[0, 1])
