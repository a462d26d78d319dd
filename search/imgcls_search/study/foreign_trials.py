"""Trials that were not added to a study by a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState


@dataclass(frozen=True, kw_only=True)
class ForeignTrial:
    """A trial that was not added by a search but, for example, by plain Optuna or a dashboard."""

    number: int
    id: int
    state: str
    """Optuna's state in lower case."""

    params: Mapping[str, Any]
    """Its parameters; for a waiting trial, those it was enqueued with."""


def is_ours(frozen: FrozenTrial) -> bool:
    """Tell whether a search wrote a trial; others may have some attributes of the same names, but not all."""
    return frozen.state != TrialState.WAITING and {"config", "seed", "plan"} <= frozen.user_attrs.keys()


def foreign_trial_of(frozen: FrozenTrial) -> ForeignTrial:
    """Return a trial that no search made."""
    # `enqueue_trial` stores the parameters there.
    params = frozen.system_attrs.get("fixed_params", frozen.params)
    return ForeignTrial(
        number=frozen.number,
        id=frozen._trial_id,
        state=frozen.state.name.lower(),
        params=params if isinstance(params, dict) else {},
    )
