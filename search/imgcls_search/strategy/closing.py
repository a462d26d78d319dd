"""The end of a budget: what can no longer be trained to its end is not begun; the best that rests is finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from imgcls_search.trial import Trial


@dataclass(frozen=True, kw_only=True)
class RemainingBudget:
    """What is left of a budget; infinite where there is none."""

    epochs: float
    """Of all trials together, without those that trials under way are about to train."""

    seconds: float


def to_finish_now(trials: Sequence[Trial], epochs: int, sign: int, remaining: RemainingBudget) -> Trial | None:
    """Return the best paused trial that can still be trained to its end once a new one no longer can.

    A paused trial is worth nothing as it stands: the best of the highest rung goes first, as far as its own epochs fit
    in. None: a new trial may begin, or nothing that rests can end in time.
    """
    seen = [trial.epochs[-1]["seconds"] for trial in trials if trial.epochs]
    if not seen or (remaining.epochs >= epochs and remaining.seconds >= epochs * median(seen)):
        return None
    fit = [trial for trial in trials if trial.state == "paused" and _fits(trial, epochs - trial.epoch, remaining)]
    return best_paused(fit, sign)


def is_kept_for_running(trials: Sequence[Trial], epochs: int, remaining: RemainingBudget) -> bool:
    """Tell whether the epochs that are left are kept for trials under way, once no new trial can reach its end.

    A new trial, or a promotion to a rung below the end, would take them from the one that may still get there.
    """
    return remaining.epochs < epochs and any(trial.state == "running" for trial in trials)


def best_paused(paused: Sequence[Trial], sign: int) -> Trial | None:
    """Return the best trial of the highest rung."""
    return max(paused, key=lambda trial: (trial.epoch, sign * trial.value_at(trial.epoch), -trial.number), default=None)


def _fits(trial: Trial, missing: int, remaining: RemainingBudget) -> bool:
    return missing <= remaining.epochs and missing * trial.epochs[-1]["seconds"] <= remaining.seconds
