"""Rank the complete trials within the measured limits by the objectives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from imgcls_search import rounding
from imgcls_search.errors import NoResultError, StudyError
from imgcls_search.measures import sign_of
from imgcls_search.study.activity import shown_state
from imgcls_search.study.record import Record
from imgcls_search.trial import Trial
from imgcls_search.words import some

LISTED = 5
"""Most trials of a front that a message lists."""

BLOCK = 256
"""Trials to compare with the others at a time; bounds the memory."""


def feasible(record: Record) -> list[Trial]:
    """Return the complete trials within all limits."""
    return [trial for trial in record.trials if trial.state == "complete" and trial.is_feasible]


def ranked(record: Record) -> list[Trial]:
    """Return the complete, feasible trials, best first; with several objectives, sort by how many others dominate each.

    Ties go to the smaller model, then to the earlier trial.
    """
    return _in_order(feasible(record), record)


def is_among(trial: Trial, values: Sequence[float], record: Record, count: int) -> bool:
    """Tell whether a trial would rank among the best `count` if it completed with these values."""
    done = feasible(record)
    candidate = replace(trial, values=tuple(values))
    return any(other is candidate for other in _in_order([*done, candidate], record)[:count])


def _in_order(done: Sequence[Trial], record: Record) -> list[Trial]:
    scores = _scores(done, record)
    # With one objective, sorting by score is enough.
    beaten_by = num_dominating(np.array(scores)) if len(record.objectives) > 1 and done else [0] * len(done)
    keys = [
        (beaten, [-number for number in score], trial.sizes["params"], trial.number)
        for trial, score, beaten in zip(done, scores, beaten_by, strict=True)
    ]
    return [done[index] for index in sorted(range(len(done)), key=keys.__getitem__)]


def front(record: Record) -> list[Trial]:
    """Return the Pareto front of the complete, feasible trials; with one objective, only the best trial.

    Raises:
        NoResultError: no trial is complete and feasible.
    """
    order = ranked(record)
    if not order:
        raise NoResultError(f"study {record.study.study_name!r} has no {_what_lacks(record)}; {_how_it_stands(record)}")
    if len(record.objectives) == 1:
        return order[:1]
    beaten_by = num_dominating(np.array(_scores(order, record)))
    return [trial for trial, beaten in zip(order, beaten_by, strict=True) if not beaten]


def the_best(record: Record) -> Trial:
    """Return the best trial; with several objectives, the only one on the front.

    Raises:
        NoResultError: no trial is complete and feasible.
        StudyError: the front has several trials, and only a person can choose among them.
    """
    found = front(record)
    if len(found) > 1:
        raise StudyError(
            f"study {record.study.study_name!r} has {len(found)} trials on its front, and none beats another in every "
            f"objective: {listed(found, record)}; choose one with --trial (see: imgcls-search front {record.argument})"
        )
    return found[0]


def listed(trials: Sequence[Trial], record: Record) -> str:
    """Return the numbers and values of a few trials in one line."""
    return some([f"{trial.number} ({values_in_words(trial, record)})" for trial in trials], LISTED)


def values_in_words(trial: Trial, record: Record) -> str:
    """Return the values of a complete trial in one line."""
    values = zip(record.objectives, trial.values or (), strict=True)
    return rounding.pairs({metric: value for (metric, _), value in values}, record.val_images)


def num_dominating(scores: Any) -> Any:
    """Count for each row the rows that are as good in every column and better in one; larger is better.

    Shapes: (rows, columns) to (rows,). Rows are sorted first, so that each is compared with later ones only.
    """
    different, which, repeats = np.unique(scores, axis=0, return_inverse=True, return_counts=True)
    ordered = np.repeat(different, repeats, axis=0)
    first = np.cumsum(repeats) - repeats
    counts = np.empty(len(different), dtype=int)
    for start in range(0, len(different), BLOCK):
        block, later = different[start : start + BLOCK], ordered[first[start] :]
        as_good = np.ones((len(block), len(later)), dtype=bool)
        for column in range(different.shape[1]):
            as_good &= later[None, :, column] >= block[:, None, column]
        # Do not count the row itself and its duplicates.
        counts[start : start + BLOCK] = np.count_nonzero(as_good, axis=1) - repeats[start : start + BLOCK]
    return counts[which.ravel()]


def _scores(trials: Sequence[Trial], record: Record) -> list[list[float]]:
    """Return the values of trials, with signs flipped so that larger is better."""
    signs = [sign_of(direction) for _, direction in record.objectives]
    return [[sign * value for sign, value in zip(signs, trial.values or (), strict=True)] for trial in trials]


def over_limits(trial: Trial) -> tuple[str, ...]:
    """Return the measured limits that a trial breaks."""
    return tuple(name for name, excess in trial.constraints.items() if excess > 0)


def _what_lacks(record: Record) -> str:
    over = [over_limits(trial) for trial in record.trials if trial.state == "complete"]
    broken = dict.fromkeys(name for names in over for name in names)
    return f"finished trial within {', '.join(broken)}" if over else "finished trial"


def _how_it_stands(record: Record) -> str:
    states = [shown_state(trial, record) for trial in record.trials]
    counts = {state: states.count(state) for state in dict.fromkeys(states)}
    return ", ".join(f"{count} {state}" for state, count in counts.items()) or "it has no trial at all"
