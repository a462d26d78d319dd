"""Find the trials that have changed since the last look: in a large study, one of thousands at a time."""

from __future__ import annotations

from collections.abc import Sequence

from imgcls_search.trial import Trial


class Changes:
    """Finds trials with new results for a strategy."""

    def __init__(self) -> None:
        """Start without any known trial."""
        self.decided_at: dict[int, int] = {}

    def take(self, trials: Sequence[Trial]) -> list[tuple[Trial, int]]:
        """Return the trials decided about since the last call, each with the epoch of its previous decision."""
        known = self.decided_at
        changed = [
            (trial, known.get(trial.number, 0)) for trial in trials if known.get(trial.number) != trial.decided_at
        ]
        known.update((trial.number, trial.decided_at) for trial, _ in changed)
        return changed
