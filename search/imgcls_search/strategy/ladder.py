"""Who stands where at each rung of a search whose trials rest and go on."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from imgcls_search.strategy.changes import Changes
from imgcls_search.trial import Trial

Rank = tuple[float, int]
"""Less is better: the value at a rung, turned where larger ones are better, and the trial's number."""


@dataclass
class _Rung:
    judged: list[Rank] = field(default_factory=list)
    """Of all trials that were judged there, the best first."""

    resting: list[tuple[Rank, Trial]] = field(default_factory=list)
    """A heap of those that came to rest there; some may have gone on since, or ended."""


class Ladder:
    """Keeps the order of each rung from one look at the trials to the next."""

    def __init__(self, eta: int, sign: int) -> None:
        """One of `eta` trials passes; `sign` is 1 where larger values are better, -1 where smaller ones are."""
        self.eta, self.sign = eta, sign
        self._begin((), ())

    def promote(self, trials: Sequence[Trial]) -> Trial | None:
        """Return the best resting trial of the highest rung at which it is among the best 1/eta."""
        self._look(trials)
        for epoch, rung in self.rungs.items():
            while rung.resting and not _rests_at(rung.resting[0][1], epoch):
                heappop(rung.resting)
            if rung.resting:
                rank, trial = rung.resting[0]
                if bisect_left(rung.judged, rank) < len(rung.judged) // self.eta:
                    return trial
        return None

    def _begin(self, trials: Sequence[Trial], rungs: Sequence[int]) -> None:
        self.trials = trials
        self.changes = Changes()
        self.rungs = {epoch: _Rung() for epoch in sorted(rungs, reverse=True)}
        """The highest first."""

    def _look(self, trials: Sequence[Trial]) -> None:
        if trials is not self.trials:
            self._begin(trials, ())
        changed = self.changes.take(trials)
        new = {trial.epoch for trial, _ in changed if trial.state == "paused"} - self.rungs.keys()
        if new:
            self._begin(trials, (*self.rungs, *new))
            changed = self.changes.take(trials)
        for trial, before in changed:
            for epoch, rung in self.rungs.items():
                if epoch > before and trial.was_judged_at(epoch):
                    insort(rung.judged, self._rank(trial, epoch))
            if trial.state == "paused":
                heappush(self.rungs[trial.epoch].resting, (self._rank(trial, trial.epoch), trial))

    def _rank(self, trial: Trial, epoch: int) -> Rank:
        value = -self.sign * trial.value_at(epoch)
        # What has no order stands behind all that has one.
        return (math.inf if math.isnan(value) else value), trial.number


def _rests_at(trial: Trial, epoch: int) -> bool:
    return trial.state == "paused" and trial.epoch == epoch
