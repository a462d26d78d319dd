"""Adopt the open trials that an earlier run left, and end those whose record is damaged."""

from __future__ import annotations

import math

from imgcls_search.config import completed
from imgcls_search.measures import is_number
from imgcls_search.orchestrator.context import SearchContext
from imgcls_search.space import Difference, Space, differences
from imgcls_search.study.settings import is_free
from imgcls_search.trial import Trial


def adopt(context: SearchContext) -> list[Trial]:
    """Return the trials that were running, each with a milestone that it can reach.

    An open trial whose configuration is not that of its parameters ends as failed: no program could tell what it
    trained so far.
    """
    for trial in [trial for trial in context.record.trials if trial.is_open]:
        if (damage := _damage_of(trial, context.space)) is not None:
            context.record.fail(trial, f"its record is damaged: {damage}")
            context.say(f"trial {trial.number} failed: {trial.reason}")
    running = [trial for trial in context.record.trials if trial.state == "running"]
    for trial in running:
        # The milestone may be damaged too.
        trial.until = max(1, min(trial.until, trial.last_epoch(context.epochs)))
    return running


def _damage_of(trial: Trial, space: Space) -> str | None:
    """Return how a trial's configuration differs from what its parameters give in a space, None if it does not."""
    try:
        wanted = space.config_of(trial.candidate.params).to_dict()
    except (KeyError, ValueError) as error:
        return f"its parameters are not of this space ({error!s:.120})"
    known = completed(trial.candidate.config.to_dict(), wanted)
    changes = [each for each in differences(wanted, known) if not is_free(each.path) and not _is_rounding(each)]
    return f"its configuration is not that of its parameters: {changes[0]!s:.200}" if changes else None


def _is_rounding(change: Difference) -> bool:
    """Tell whether two numbers differ by rounding only, as 0.1 + 2 * 0.1 and 0.3 do.

    A configuration has the numbers on the steps of its range; once the study is extended to a range without steps,
    its parameters give them as a sampler added them up.
    """
    numbers = change.old, change.new
    return all(map(is_number, numbers)) and math.isclose(*numbers, rel_tol=1e-9, abs_tol=1e-12)
