"""What becomes of a trial at a milestone: it is complete, or the pruner lets it go on, pauses it or prunes it."""

from __future__ import annotations

from dataclasses import dataclass

from imgcls_search.orchestrator.context import SearchContext
from imgcls_search.strategy.rungs import Pruner
from imgcls_search.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Milestones:
    """Decides by what is recorded, and records what it decided."""

    context: SearchContext
    pruner: Pruner
    why_pruned: str
    """The reason that a pruned trial gets, before the epoch."""

    def decide(self, trial: Trial) -> bool:
        """Decide on a trial that was trained and measured up to its milestone; tell whether it trains on at once."""
        record = self.context.record
        if trial.epoch == trial.last_epoch(self.context.epochs):
            record.complete(trial, *self.context.outcome(trial))
            return False
        decision = self.pruner.judge(trial, record.trials)
        if decision == "prune":
            record.prune(trial, f"{self.why_pruned} at epoch {trial.epoch}")
            return False
        paused = decision == "pause"
        until = trial.epoch if paused else self.pruner.milestone(trial, record.trials)
        record.set_plan(trial, until=until, paused=paused)
        return not paused

    def close_paused(self, reason: str) -> None:
        """End all paused trials, as no further one is promoted."""
        for trial in self.context.record.trials:
            if trial.state == "paused":
                self.context.record.prune(trial, reason)
