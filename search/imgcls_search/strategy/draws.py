"""The ways to draw one candidate: known-good, random, evenly spread, or not seen before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from imgcls_search.config import Scalar, TrialConfig
from imgcls_search.space import Space
from imgcls_search.strategy.encoding import value_at
from imgcls_search.strategy.view import View
from imgcls_search.trial import Candidate

if TYPE_CHECKING:
    import optuna


def draw_start(view: View, params: Mapping[str, Scalar], number: int) -> Candidate:
    """Return a known-good configuration as a candidate; settings that it leaves out are drawn at random."""
    study = _blank_study(view.derive(number, 0))
    study.enqueue_trial(dict(params))
    return ask(study, view.space)


def draw_random(view: View, number: int, attempt: int) -> Candidate:
    """Return a random candidate, whatever the sampler; used when the sampler repeats itself."""
    return ask(_blank_study(view.derive(number, attempt)), view.space)


def random_configs(space: Space, count: int) -> Iterator[TrialConfig]:
    """Yield random configurations of a space, always the same ones."""
    view = View(space, [], [], 0)
    return (draw_random(view, number, 0).config for number in range(count))


def draw_evenly(view: View, number: int, attempt: int, given: Mapping[str, Scalar] | None = None) -> Candidate:
    """Return a point of a scrambled Sobol sequence (Sobol 1967); each parameter of each branch is a dimension.

    Values in `given` replace the point's own.
    """
    from scipy.stats import qmc

    parameters = view.space.parameters()
    engine = qmc.Sobol(d=max(1, len(parameters)), rng=view.seed)
    # Each attempt so far was a rejection or a repeat.
    if index := number + attempt + sum(len(trial.rejected_before) for trial in view.trials):
        engine.fast_forward(index)
    point = engine.random(1)[0]
    params = {p.path: value_at(p, float(u)) for p, u in zip(parameters, point, strict=False)}
    return fixed_candidate(view, params | dict(given or {}))


def draw_unseen(view: View, number: int) -> Candidate | None:
    """Return a random combination of a finite space that was neither tried nor rejected; None if none is left."""
    import numpy as np

    seen = {_key(trial.candidate.params) for trial in view.trials}
    seen |= {_key(rejection.params) for rejection in view.all_rejections()}
    left = [params for params in view.space.combinations() if _key(params) not in seen]
    if not left:
        return None
    return fixed_candidate(view, left[np.random.default_rng(view.derive(number)).integers(len(left))])


def _blank_study(seed: int) -> optuna.Study:
    """Return a study that draws at random; this needs no view, which takes time to build."""
    import optuna

    # Optuna otherwise announces every study it creates.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))


def ask(study: optuna.Study, space: Space, *, keeps_state: bool = False) -> Candidate:
    """Return the candidate that a study's sampler draws next, with the sampler's state if `keeps_state`."""
    trial = study.ask()
    config = space.sample(trial)
    frozen = study.get_trials(deepcopy=False)[-1]
    state = frozen.system_attrs if keeps_state else {}
    return Candidate(params=frozen.params, distributions=frozen.distributions, config=config, sampler_state=state)


def fixed_candidate(view: View, params: Mapping[str, Scalar]) -> Candidate:
    """Return parameters as a candidate, without those that no branch reaches."""
    import optuna

    # Unlike an enqueued trial, this needs no study, gives no warnings, and reads only reachable parameters.
    trial = optuna.trial.FixedTrial(dict(params))
    config = view.space.sample(trial)
    return Candidate(params=trial.params, distributions=trial.distributions, config=config)


def _key(params: Mapping[str, Scalar]) -> str:
    return repr(sorted(params.items()))
