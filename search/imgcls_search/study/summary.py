"""How a study stands, as plain values that a screen or a script can show."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from imgcls_search.study import best
from imgcls_search.study.outlook import outlook
from imgcls_search.study.record import Record
from imgcls_search.trial import State, Trial

STATES: tuple[State, ...] = ("complete", "running", "paused", "pruned", "fail")


def summarise(record: Record) -> dict[str, Any]:
    """Return counts by state, rejections and troubles by reason, failures, the best trials, what more may gain."""
    states = Counter(trial.state for trial in record.trials)
    rejections = Counter(rejection.reason for trial in record.trials for rejection in trial.rejected_before)
    troubles = Counter(reason for trial in record.trials for reason in trial.troubles)
    done = best.ranked(record)
    ahead = outlook(record)
    return {
        "study": record.study.study_name,
        "objectives": dict(record.objectives),
        "trials": {"total": len(record.trials), **{state: states[state] for state in STATES}},
        "rejected": dict(rejections.most_common()),
        "troubles": dict(troubles.most_common()),
        "failures": [
            {"trial": trial.number, "reason": trial.reason} for trial in record.trials if trial.state == "fail"
        ],
        "epochs": sum(trial.epoch for trial in record.trials),
        "over_limits": dict(Counter(name for trial in record.trials for name in best.over_limits(trial)).most_common()),
        "best": [describe(trial, record) for trial in best.front(record)] if done else [],
        "outlook": None if ahead is None else asdict(ahead),
        "test_openings": record.facts.get("test_openings", []),
        "others": [
            {"trial": other.number, "state": other.state, "params": dict(other.params)}
            for other in record.strangers.values()
        ],
        "runs": record.facts.get("runs", []),
    }


def describe(trial: Trial, record: Record) -> dict[str, Any]:
    """Return one trial with its values, sizes, parameters, last epoch, and what its network showed as deployed."""
    values = trial.values or ()
    return {
        "trial": trial.number,
        "state": trial.state,
        "values": {metric: value for (metric, _), value in zip(record.objectives, values, strict=False)},
        "sizes": dict(trial.sizes),
        "params": dict(trial.candidate.params),
        "epochs": trial.epoch,
        "metrics": dict(trial.epochs[-1]) if trial.epochs else {},
        "deployed": dict(trial.scores.get(trial.epoch, {})),
        "over_limits": list(best.over_limits(trial)),
        "seed": trial.seed,
        "reason": trial.reason,
    }
