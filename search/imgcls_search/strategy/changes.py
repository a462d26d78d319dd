"""What has changed since a strategy last looked: in a large study one trial at a time does, of thousands."""

from __future__ import annotations

from collections.abc import Sequence

from imgcls_search.trial import Trial


class Changes:
    """Finds the trials that show strategies something new."""

    def __init__(self) -> None:
        """Know no trial yet."""
        self.stages: dict[int, int] = {}

    def take(self, trials: Sequence[Trial]) -> list[tuple[Trial, int]]:
        """Return the trials whose stage is another than it was the last time, each with that one; 0 for new trials."""
        stages = self.stages
        changed = [(trial, stages.get(trial.number, 0)) for trial in trials if stages.get(trial.number) != trial.stage]
        stages.update((trial.number, trial.stage) for trial, _ in changed)
        return changed
