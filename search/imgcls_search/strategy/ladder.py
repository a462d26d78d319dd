"""The ranking of trials at each rung of a search that pauses and promotes them."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from imgcls_search.strategy.changes import Changes
from imgcls_search.trial import Trial

Rank = tuple[float, int]
"""The value at a rung, signed so that less is better, and the trial's number."""


@dataclass
class _Rung:
    judged: list[Rank] = field(default_factory=list)
    """Ranks of all trials that were judged there, the best first."""

    paused: list[tuple[Rank, Trial]] = field(default_factory=list)
    """A heap of trials that paused there; some may have continued since, or ended."""


class Ladder:
    """Keeps the ranking of each rung between calls."""

    def __init__(self, eta: int, sign: int) -> None:
        """One of `eta` trials passes; `sign` is 1 if larger values are better, -1 if smaller ones are."""
        self.eta, self.sign = eta, sign
        self.among: Sequence[int] | None = None
        self._begin((), ())

    def promote(self, trials: Sequence[Trial], among: Sequence[int] | None = None) -> Trial | None:
        """Return the best paused trial of the highest rung that has one among its best 1/eta.

        Each rung is an epoch at which trials pause. With `among`, a trial paused between two of these rungs counts at
        the lower one, with its value there: it has passed no higher one.
        """
        if among != self.among:
            self.among = among
            self._begin(trials, ())
        self._look(trials)
        for epoch, rung in self.rungs.items():
            while rung.paused and not self._is_paused_at(rung.paused[0][1], epoch):
                heappop(rung.paused)
            if rung.paused:
                rank, trial = rung.paused[0]
                if bisect_left(rung.judged, rank) < len(rung.judged) // self.eta:
                    return trial
        return None

    def _begin(self, trials: Sequence[Trial], rungs: Sequence[int]) -> None:
        self.trials = trials
        self.changes = Changes()
        self.rungs = {epoch: _Rung() for epoch in sorted(rungs, reverse=True)}
        """By epoch, the highest first."""

    def _look(self, trials: Sequence[Trial]) -> None:
        if trials is not self.trials:
            self._begin(trials, ())
        changed = self.changes.take(trials)
        new = {self._rung_of(trial) for trial, _ in changed if trial.state == "paused"} - self.rungs.keys()
        if new:
            self._begin(trials, (*self.rungs, *new))
            changed = self.changes.take(trials)
        for trial, before in changed:
            for epoch, rung in self.rungs.items():
                if epoch > before and trial.was_judged_at(epoch):
                    insort(rung.judged, self._rank(trial, epoch))
            if trial.state == "paused":
                epoch = self._rung_of(trial)
                heappush(self.rungs[epoch].paused, (self._rank(trial, epoch), trial))

    def _rung_of(self, trial: Trial) -> int:
        """Return the rung at which a paused trial counts: where it paused, if no other is given or all are later."""
        passed = (rung for rung in self.among or () if rung <= trial.epoch and trial.has_value_at(rung))
        return max(passed, default=trial.epoch)

    def _is_paused_at(self, trial: Trial, epoch: int) -> bool:
        return trial.state == "paused" and self._rung_of(trial) == epoch

    def _rank(self, trial: Trial, epoch: int) -> Rank:
        value = -self.sign * trial.value_at(epoch)
        # NaN ranks last.
        return (math.inf if math.isnan(value) else value), trial.number
