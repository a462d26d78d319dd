"""The end of a budget: start no trial that cannot finish in it, and finish the best paused trial instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from imgcls_search.trial import Trial


@dataclass(frozen=True, kw_only=True)
class RemainingBudget:
    """The remaining budget; infinite without a limit."""

    epochs: float
    """For all trials together, without the epochs that running trials will still train."""

    seconds: float


def to_finish_now(trials: Sequence[Trial], epochs: int, sign: int, remaining: RemainingBudget) -> Trial | None:
    """Return the best paused trial that can still be trained to its end once a new one no longer can.

    An unfinished trial is worth nothing: the best one of the highest rung goes first, if its remaining epochs fit into
    the budget. None: a new trial may begin, or no paused trial can finish in time.
    """
    seen = [trial.epochs[-1]["seconds"] for trial in trials if trial.epochs]
    if not seen or (remaining.epochs >= epochs and remaining.seconds >= epochs * median(seen)):
        return None
    fit = [trial for trial in trials if trial.state == "paused" and _fits(trial, epochs - trial.epoch, remaining)]
    return best_paused(fit, sign)


def is_kept_for_running(trials: Sequence[Trial], epochs: int, remaining: RemainingBudget) -> bool:
    """Tell whether the remaining epochs are kept for running trials, since no new trial can reach its end.

    A new trial, or a promotion to a rung below the end, would take them from a trial that may still reach it.
    """
    return remaining.epochs < epochs and any(trial.state == "running" for trial in trials)


def best_paused(paused: Sequence[Trial], sign: int) -> Trial | None:
    """Return the best trial of the highest rung."""
    return max(paused, key=lambda trial: (trial.epoch, sign * trial.value_at(trial.epoch), -trial.number), default=None)


def _fits(trial: Trial, missing: int, remaining: RemainingBudget) -> bool:
    return missing <= remaining.epochs and missing * trial.epochs[-1]["seconds"] <= remaining.seconds
