"""The race that begins a search with earlier studies: a few trials train a little, and the best one to its end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from imgcls_search.strategy.rungs import Promoting, Pruner
from imgcls_search.trial import Trial

RACES: Mapping[str, Any] = {"races": True}
"""Marks a racer in its row, so that a restart recognises it."""


MOST_RUNGS = 8
"""Most rungs at which racers are compared."""


@dataclass(frozen=True, kw_only=True)
class Race:
    """Racers train to the first rung, the better half of them to the second and so on, and the best to its end.

    The others wait like any paused trial, and may be promoted later.
    """

    rungs: tuple[int, ...]
    """Rungs of the search; at least one."""

    size: int
    """How many trials a search begins with before the race can be decided."""

    sign: int
    epochs: int

    def is_on(self, trials: Sequence[Trial], *, is_last_drawn: bool) -> bool:
        """Tell whether racers are still to be drawn or training; `is_last_drawn` says that no more can be drawn."""
        if len(trials) < self.size and not is_last_drawn:
            return True
        return self._look(trials)[1]

    def next(self, trials: Sequence[Trial], *, is_last_drawn: bool) -> tuple[Trial, int] | None:
        """Return a racer to continue, and how far; None if there is none now."""
        if len(trials) < self.size and not is_last_drawn:
            return None
        return self._look(trials)[0]

    def _look(self, trials: Sequence[Trial]) -> tuple[tuple[Trial, int] | None, bool]:
        """Return a racer to continue now, and whether any is still training towards the next comparison."""
        left = self._racers(trials)
        for rung, following in zip(self.rungs, (*self.rungs[1:], self.epochs), strict=True):
            if any(not _has_arrived(trial, rung) for trial in left):
                return None, True
            there = self._ranked(left, rung)
            left = there[: 1 if following == self.epochs else (len(there) + 1) // 2]
            if (paused := next((trial for trial in left if _is_paused_at(trial, rung)), None)) is not None:
                return (paused, following), True
        return None, False

    def _racers(self, trials: Sequence[Trial]) -> list[Trial]:
        # In a large study, this avoids a look at all other trials.
        return list(islice(filter(races, trials), self.size))

    def _ranked(self, trials: Sequence[Trial], rung: int) -> list[Trial]:
        there = [trial for trial in trials if trial.was_judged_at(rung) and math.isfinite(trial.value_at(rung))]
        return sorted(there, key=lambda trial: (-self.sign * trial.value_at(rung), trial.number))


def _has_arrived(trial: Trial, rung: int) -> bool:
    return not trial.is_open or trial.judged >= rung


def _is_paused_at(trial: Trial, rung: int) -> bool:
    return trial.state == "paused" and trial.epoch == rung


def races(trial: Trial) -> bool:
    """Tell whether a trial is in the race."""
    return bool(trial.candidate.sampler_state.get("races"))


def make_race(pruner: Pruner, size: int, sign: int) -> Race | None:
    """Return the race of a search that begins with `size` racers; None if trials cannot wait for each other."""
    if not isinstance(pruner, Promoting) or not pruner.rungs or size < 2:
        return None
    return Race(rungs=pruner.rungs[:MOST_RUNGS], size=size, sign=sign, epochs=pruner.epochs)
