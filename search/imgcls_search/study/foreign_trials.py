"""Trials that something else than a search added to a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState


@dataclass(frozen=True, kw_only=True)
class ForeignTrial:
    """A trial that something else than a search added to the study: plain Optuna, a dashboard."""

    number: int
    id: int
    state: str
    """Optuna's, in small letters."""

    params: Mapping[str, Any]
    """What it was given, where it waits to be tried."""


def is_ours(frozen: FrozenTrial) -> bool:
    """Tell whether a search wrote a trial; other people's may have attributes of the same names, but not all."""
    return frozen.state != TrialState.WAITING and {"config", "seed", "plan"} <= frozen.user_attrs.keys()


def foreign_trial_of(frozen: FrozenTrial) -> ForeignTrial:
    """Return what is known of a trial that no search made."""
    # As `enqueue_trial` keeps them.
    params = frozen.system_attrs.get("fixed_params", frozen.params)
    return ForeignTrial(
        number=frozen.number,
        id=frozen._trial_id,
        state=frozen.state.name.lower(),
        params=params if isinstance(params, dict) else {},
    )
