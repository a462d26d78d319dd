"""Which trials are best: among complete ones that keep the measured limits, by the objectives."""

from __future__ import annotations

from collections.abc import Sequence

from search.errors import NoResultError
from search.study.record import Record
from search.trial import Trial


def ranked(record: Record) -> list[Trial]:
    """Return the complete, feasible trials, best first; with several objectives, those that nothing beats come first.

    Ties go to the smaller model, then to the earlier trial.
    """
    done = [trial for trial in record.trials if trial.state == "complete" and trial.is_feasible]
    signs = [1 if direction == "maximize" else -1 for _, direction in record.objectives]
    scores = {trial.number: [s * v for s, v in zip(signs, trial.values or (), strict=True)] for trial in done}

    def beaten_by(trial: Trial) -> int:
        # With one objective the order of the scores says it; counting would compare every trial with every other.
        own = scores[trial.number]
        return sum(_dominates(other, own) for other in scores.values()) if len(signs) > 1 else 0

    return sorted(
        done,
        key=lambda trial: (
            beaten_by(trial),
            [-score for score in scores[trial.number]],
            trial.sizes["params"],
            trial.number,
        ),
    )


def front(record: Record) -> list[Trial]:
    """Return the complete and feasible trials that no other beats in every objective; one trial for one objective.

    Raises:
        NoResultError: no trial is complete and feasible.
    """
    order = ranked(record)
    if not order:
        raise NoResultError(f"study {record.study.study_name!r} has no {_what_lacks(record)}; {_how_it_stands(record)}")
    if len(record.objectives) == 1:
        return order[:1]
    signs = [1 if direction == "maximize" else -1 for _, direction in record.objectives]
    scores = [[s * v for s, v in zip(signs, trial.values or (), strict=True)] for trial in order]
    return [
        trial
        for trial, score in zip(order, scores, strict=True)
        if not any(_dominates(other, score) for other in scores)
    ]


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x >= y for x, y in zip(a, b, strict=True)) and any(x > y for x, y in zip(a, b, strict=True))


def over_limits(trial: Trial) -> tuple[str, ...]:
    """Return the measured limits that a trial breaks."""
    return tuple(name for name, excess in trial.constraints.items() if excess > 0)


def _what_lacks(record: Record) -> str:
    over = [over_limits(trial) for trial in record.trials if trial.state == "complete"]
    broken = dict.fromkeys(name for names in over for name in names)
    return f"finished trial within {', '.join(broken)}" if over else "finished trial"


def _how_it_stands(record: Record) -> str:
    states = [trial.state for trial in record.trials]
    counts = {state: states.count(state) for state in dict.fromkeys(states)}
    return ", ".join(f"{count} {state}" for state, count in counts.items()) or "it has no trial at all"
