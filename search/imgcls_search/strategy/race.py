"""The race that begins a search which knows earlier studies: a handful trains a little, the best of it to its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imgcls_search.strategy.pruners import Promoting, Pruner
from imgcls_search.trial import Trial

RACES: Mapping[str, Any] = {"races": True}
"""What a racer's row says, so that a restart knows it."""


@dataclass(frozen=True, kw_only=True)
class Race:
    """Racers train to the second rung; then the best of them trains to its end, and the others wait as all do."""

    rung: int
    size: int
    """How many trials a search begins with before the race can be over."""

    sign: int

    def is_on(self, trials: Sequence[Trial], *, is_last_drawn: bool) -> bool:
        """Tell whether racers are still to be drawn or to arrive; `is_last_drawn` says that no more can be drawn."""
        if len(trials) < self.size and not is_last_drawn:
            return True
        return any(not self._has_arrived(trial) for trial in trials if races(trial))

    def winner(self, trials: Sequence[Trial]) -> Trial | None:
        """Return the best racer if it still waits at the rung of the race."""
        there = [trial for trial in trials if races(trial) and trial.was_judged_at(self.rung)]
        best = max(there, key=lambda trial: (self.sign * trial.value_at(self.rung), -trial.number), default=None)
        return best if best is not None and best.state == "paused" and best.epoch == self.rung else None

    def _has_arrived(self, trial: Trial) -> bool:
        return not trial.is_open or trial.judged >= self.rung


def races(trial: Trial) -> bool:
    """Tell whether a trial is in the race."""
    return bool(trial.candidate.sampler_state.get("races"))


def make_race(pruner: Pruner, size: int, sign: int) -> Race | None:
    """Return the race of a search that begins with so many racers; None where trials cannot wait for each other."""
    if not isinstance(pruner, Promoting) or not pruner.rungs or size < 2:
        return None
    return Race(rung=pruner.rungs[:2][-1], size=size, sign=sign)
