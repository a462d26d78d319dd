"""The race that begins a search which knows earlier studies: a handful trains a little, the best of it to its end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from imgcls_search.strategy.pruners import Promoting, Pruner
from imgcls_search.trial import Trial

RACES: Mapping[str, Any] = {"races": True}
"""What a racer's row says, so that a restart knows it."""


@dataclass(frozen=True, kw_only=True)
class Race:
    """Racers train to the first rung, the better half of them to the second, and the best of those to its end.

    What does not go on waits like any paused trial, and may be promoted later.
    """

    rungs: tuple[int, ...]
    """The first rung of the search, or the first two."""

    size: int
    """How many trials a search begins with before the race can be decided."""

    sign: int
    epochs: int

    def is_on(self, trials: Sequence[Trial], *, is_last_drawn: bool) -> bool:
        """Tell whether racers are still to be drawn or to arrive; `is_last_drawn` says that no more can be drawn."""
        if len(trials) < self.size and not is_last_drawn:
            return True
        if any(not _has_arrived(trial, self.rungs[0]) for trial in self._racers(trials)):
            return True
        return any(not _has_arrived(trial, self.rungs[-1]) for trial in self._finalists(trials))

    def next(self, trials: Sequence[Trial], *, is_last_drawn: bool) -> tuple[Trial, int] | None:
        """Return a racer that goes on, and how far; None where nobody does now."""
        if len(trials) < self.size and not is_last_drawn:
            return None
        if any(not _has_arrived(trial, self.rungs[0]) for trial in self._racers(trials)):
            return None
        finalists = self._finalists(trials)
        for trial in finalists:
            if _rests_at(trial, self.rungs[0]) and len(self.rungs) > 1:
                return trial, self.rungs[-1]
        if any(not _has_arrived(trial, self.rungs[-1]) for trial in finalists):
            return None
        best = next(iter(self._ranked(finalists, self.rungs[-1])), None)
        return (best, self.epochs) if best is not None and _rests_at(best, self.rungs[-1]) else None

    def _racers(self, trials: Sequence[Trial]) -> list[Trial]:
        # In a large study the others need not be looked at.
        return list(islice(filter(races, trials), self.size))

    def _finalists(self, trials: Sequence[Trial]) -> list[Trial]:
        there = self._ranked(self._racers(trials), self.rungs[0])
        return there[: (len(there) + 1) // 2]

    def _ranked(self, trials: Sequence[Trial], rung: int) -> list[Trial]:
        there = [trial for trial in trials if trial.was_judged_at(rung) and math.isfinite(trial.value_at(rung))]
        return sorted(there, key=lambda trial: (-self.sign * trial.value_at(rung), trial.number))


def _has_arrived(trial: Trial, rung: int) -> bool:
    return not trial.is_open or trial.judged >= rung


def _rests_at(trial: Trial, rung: int) -> bool:
    return trial.state == "paused" and trial.epoch == rung


def races(trial: Trial) -> bool:
    """Tell whether a trial is in the race."""
    return bool(trial.candidate.sampler_state.get("races"))


def make_race(pruner: Pruner, size: int, sign: int) -> Race | None:
    """Return the race of a search that begins with so many racers; None where trials cannot wait for each other."""
    if not isinstance(pruner, Promoting) or not pruner.rungs or size < 2:
        return None
    return Race(rungs=pruner.rungs[:2], size=size, sign=sign, epochs=pruner.epochs)
