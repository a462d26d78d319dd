"""The view that samplers have of a search: in memory, never the record.

Every trial has the value of its highest rung. A paused or running trial appears as pruned at its last rung, since
samplers treat a row that stays RUNNING as a bad one (TPE then falls back to random search).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from imgcls_search.space import Space
from imgcls_search.trial import Candidate, Rejection, Trial

if TYPE_CHECKING:
    import optuna

Ended = dict[tuple[Any, ...], "optuna.trial.FrozenTrial"]
"""Optuna's form of trials that no longer change, by number, state, epochs and values."""


class View:
    """What a sampler may know: the space, the objectives, and the results of every trial so far."""

    def __init__(
        self,
        space: Space,
        trials: Sequence[Trial],
        rejections: Sequence[Rejection],
        seed: int,
        ended: Ended | None = None,
    ) -> None:
        """`rejections` are those since the last trial; the trials hold earlier ones.

        `ended` caches, across views, what samplers see of trials that no longer change.
        """
        self.space = space
        self.trials = trials
        self.rejections = rejections
        self.seed = seed
        self.ended: Ended = {} if ended is None else ended

    def derive(self, *parts: int) -> int:
        """Return a seed for a step of the search; the same step gets the same seed after a restart."""
        import numpy as np

        return int(np.random.SeedSequence([self.seed, *parts]).generate_state(1)[0])

    def all_rejections(self) -> Iterator[Rejection]:
        """Yield every candidate that never became a trial."""
        for trial in self.trials:
            yield from trial.rejected_before
        yield from self.rejections

    def study(self, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
        """Return the view as an Optuna study in memory."""
        import optuna

        directions = [optuna.study.StudyDirection[direction.upper()] for _, direction in self.space.objectives]
        study = optuna.create_study(directions=directions, sampler=sampler)
        # Bypass the study, which would check every trial again: `_past_trial` has done that.
        for rejection in self.all_rejections():
            study._storage.create_new_trial(study._study_id, template_trial=_frozen_rejection(rejection))
        for trial in self.trials:
            study._storage.create_new_trial(study._study_id, template_trial=self._frozen(trial))
        return study

    def _frozen(self, trial: Trial) -> optuna.trial.FrozenTrial:
        if trial.is_open:
            return _frozen_trial(trial, len(self.space.objectives))
        key = (trial.number, trial.state, trial.epoch, trial.values)
        if key not in self.ended:
            self.ended[key] = _frozen_trial(trial, len(self.space.objectives))
        return self.ended[key]


def _frozen_trial(trial: Trial, num_objectives: int) -> optuna.trial.FrozenTrial:
    from optuna.trial import TrialState

    state, values, steps = TrialState.PRUNED, None, {}
    if trial.state == "complete" and not any(map(math.isnan, trial.values or ())):
        state, values = TrialState.COMPLETE, list(trial.values or ())
    elif trial.state == "complete":
        # Optuna does not accept NaN; pruned without a value, the trial ranks last.
        pass
    elif trial.state == "running" and trial.judged == 0:
        state = TrialState.RUNNING
    elif num_objectives == 1 and (epoch := trial.judged if trial.is_open else trial.last_shown) > 0:
        steps = {epoch: trial.value_at(epoch)}
    return _past_trial(
        trial.candidate,
        state=state,
        values=values,
        system_attrs=dict(trial.candidate.sampler_state),
        intermediate_values=steps,
        constraints=dict(trial.constraints) or None,
    )


def _frozen_rejection(rejection: Rejection) -> optuna.trial.FrozenTrial:
    from optuna.trial import TrialState

    # Pruned without a value, it ranks last; as FAIL, the sampler would learn nothing from it.
    return _past_trial(rejection, state=TrialState.PRUNED)


def _past_trial(drawn: Candidate | Rejection, **shown: Any) -> optuna.trial.FrozenTrial:
    """Return what samplers see of a candidate or rejection."""
    from optuna.trial import create_trial

    frozen = create_trial(params=dict(drawn.params), distributions=dict(drawn.distributions), **shown)
    # Optuna deep-copies a trial whenever it takes or returns one. No sampler changes a past trial, so a copy may
    # share its contents, which halves the time of a draw with 1,000 trials.
    frozen.__class__ = _sharing_class()
    return frozen


@cache
def _sharing_class() -> type[optuna.trial.FrozenTrial]:
    from optuna.trial import FrozenTrial

    class PastTrial(FrozenTrial):
        def __deepcopy__(self, memo: object) -> FrozenTrial:
            # As copy.copy does, in a quarter of the time.
            shared = object.__new__(type(self))
            shared.__dict__ |= self.__dict__
            return shared

    return PastTrial
