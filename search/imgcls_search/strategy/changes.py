"""What has changed since a strategy last looked: in a large study one trial at a time does, of thousands."""

from __future__ import annotations

from collections.abc import Sequence

from imgcls_search.trial import Trial


class Changes:
    """Finds the trials that show strategies something new."""

    def __init__(self) -> None:
        """Know no trial yet."""
        self.decided_at: dict[int, int] = {}

    def take(self, trials: Sequence[Trial]) -> list[tuple[Trial, int]]:
        """Return the trials that were decided about since the last call, each with the epoch of its decision before."""
        known = self.decided_at
        changed = [
            (trial, known.get(trial.number, 0)) for trial in trials if known.get(trial.number) != trial.decided_at
        ]
        known.update((trial.number, trial.decided_at) for trial, _ in changed)
        return changed
