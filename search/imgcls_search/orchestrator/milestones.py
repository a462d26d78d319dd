"""Decide on a trial at a milestone: it is complete, or the pruner continues, pauses or prunes it."""

from __future__ import annotations

from dataclasses import dataclass

from imgcls_search.orchestrator.context import SearchContext
from imgcls_search.strategy.rungs import Pruner
from imgcls_search.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Milestones:
    """Decides by the record, and records the decisions."""

    context: SearchContext
    pruner: Pruner
    why_pruned: str
    """The reason for a pruned trial, without the epoch."""

    def decide(self, trial: Trial) -> bool:
        """Decide on a trial that is trained and measured up to its milestone; return whether it continues at once."""
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
        """End all paused trials: none is promoted any more."""
        for trial in self.context.record.trials:
            if trial.state == "paused":
                self.context.record.prune(trial, reason)
